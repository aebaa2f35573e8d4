"""The entry point of the service's Ray jobs: `python -m alignkit_server.executors.ray.entry FOLDER NUMBER`."""

import socket
import sys
from dataclasses import replace
from pathlib import Path

from alignkit import extras
from alignkit.errors import AlignkitError
from alignkit.run.checkpoint_store import CheckpointStore
from alignkit.run.folder import RunFolder
from alignkit_server.executors.ray.submission import Submission, read
from alignkit_server.executors.ray.supervisor import supervise


def main() -> int:
    """Execute the folder's run, on this node or over several; returns the trainer's exit status."""
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    submission = read(folder)
    if submission is None:
        print(
            f"{folder} is not on the node {socket.gethostname()}: "
            "the service's home must be on storage that all nodes mount at the same path"
        )
        return 2
    if submission.number != number or submission.ended or submission.pausing():
        print(f"submission {number} of {folder.name} was ended before it started")
        return 0
    submission = replace(submission, order=replace(submission.order, resume=_resumes(submission)))
    if submission.order.nodes == 1:
        return supervise(submission)
    try:
        with extras.needed("ray", purpose="a run over several nodes"):
            from alignkit_server.executors.ray.several import (
                run,
            )  # saves Ray Train, which a run on one node does not need
    except AlignkitError as error:
        print(error)
        return 2

    return run(submission)


def _resumes(submission: Submission) -> bool:
    """Whether to resume, decided once for all nodes.

    A run that has reported anything resumes in its own folder, even from the beginning: without --resume it would
    start another run beside it.
    """
    order = submission.order
    return (
        order.resume
        or RunFolder(submission.folder).events.exists()
        or (order.storage is not None and bool(CheckpointStore(order.storage).steps()))
    )


if __name__ == "__main__":
    sys.exit(main())
