"""A trainer that starts before its run: `python -m alignkit.standby MODEL DTYPE SECONDS [ATTENTION]`.

It imports what training needs, loads the model and its tokenizer into CPU memory, and waits for one request on its
standard input: a line of JSON, an `alignkit.launch.Request`. Then it is the run's process, as if started for it.
It ends without a request in time, and when the other end of its input is closed.
"""

import json
import os
import select
import sys

from alignkit import startup, train
from alignkit.launch import Request
from alignkit.models import ahead
from alignkit.models.loading import load_tokenizer, load_weights

READY = "ready"
"""What a standby prints once its model is loaded."""


def prepare(model: str, dtype: str, attention: str | None) -> None:
    """Import what a run imports, and load the model and tokenizer for it. Raises ModelError."""
    import alignkit.checks  # saves transformers where this module is only imported; a run needs all of these
    import alignkit.run.pausing
    import alignkit.run.progress
    import alignkit.trainers.best_checkpoint
    import alignkit.trainers.building
    import alignkit.trainers.collapse_guard
    import alignkit.trainers.elastic
    import alignkit.trainers.nested_ranks
    import alignkit.trainers.orthogonal_gradient  # noqa: F401 - only imported

    train.quiet_libraries()
    ahead.hold("tokenizer", model, (), load_tokenizer(model, field="model.path"))
    ahead.hold("model", model, (dtype, attention), load_weights(model, dtype, attention, field="model.path"))


def read_request(seconds: float) -> Request | None:
    """The request that comes on standard input within `seconds`; None if none does."""
    if not select.select([sys.stdin], [], [], seconds)[0]:
        return None
    line = sys.stdin.readline()
    return Request(**json.loads(line)) if line.endswith("\n") else None


def become(request: Request) -> None:
    """Take on the run's environment, folder, log and arguments."""
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    log = os.open(request.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    sys.argv = [train.__file__, *request.arguments]


def main(model: str, dtype: str, seconds: str, attention: str | None = None) -> None:
    """Load, wait, and train what is asked for."""
    startup.begin()
    prepare(model, dtype, attention)
    print(READY, flush=True)
    request = read_request(float(seconds))
    if request is None:
        return
    become(request)
    train.run_program()


if __name__ == "__main__":
    main(*sys.argv[1:])
