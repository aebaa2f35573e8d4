"""What a Ray job of the service runs: `python -m server.executors.ray.entry FOLDER NUMBER`."""

import socket
import sys
from pathlib import Path

from server.executors.ray.guard import guarded
from server.executors.ray.submission import read


def main() -> int:
    """Run the folder's run, on this node or over several; the exit status is the trainer's."""
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    submission = read(folder)
    if submission is None:
        print(
            f"{folder} is not on the node {socket.gethostname()}: "
            "the service's home must lie on storage that all nodes see under the same path"
        )
        return 2
    if submission.number != number or submission.ended or submission.pausing():
        print(f"submission {number} of {folder.name} was ended before it began")
        return 0
    if submission.order.nodes == 1:
        return guarded(submission)
    from server.executors.ray.several import run  # Ray Train, which a run on one node does without

    return run(submission)


if __name__ == "__main__":
    sys.exit(main())
