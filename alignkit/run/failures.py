"""Failures of a run: their codes, their sentences, and where they are written."""

import os
import re
import sys
import textwrap
import traceback

from alignkit.disk import is_full
from alignkit.errors import AlignkitError, CollapseError
from alignkit.launch import RESUME
from alignkit.run.folder import RunFolder, write_json
from alignkit.sharding import is_main_process

OUT_OF_MEMORY = "Out of memory: lower micro_batch_size or max_length. ({})"


def report_failure(folder: RunFolder, error: Exception) -> None:
    """Print the failure and write it to the result. A stack trace is printed only for unexpected errors.

    Any rank that fails writes the reason. A rank that fails only because a peer died writes no result, so the run
    counts as killed and can be resumed. A result that is already there is kept.
    """
    place = "" if is_main_process() else f" in process {os.environ['RANK']}"
    if not folder.path.is_dir():
        gone = f"The run's folder {folder.path} is gone: put it back, then resume with {RESUME}."
        print(f"error{place}: {gone}", file=sys.stderr, flush=True)
        return
    if lost_a_peer(error):
        gone = f"another process of the run is gone: resume from the last checkpoint with {RESUME}"
        print(f"error{place}: {gone} ({error})", file=sys.stderr, flush=True)
        return
    code, message = explain(error)
    if code == UNEXPLAINED:
        traceback.print_exception(error)
    print(f"error{place}: {message}", file=sys.stderr, flush=True)
    if folder.result.exists():
        return
    try:
        if is_main_process():  # only rank 0 writes events
            folder.emit(message, level="error", data={"code": code})
        write_json(folder.result, {"status": "failed", "error": {"code": code, "message": message}})
    except OSError as full:
        print(f"error: the result could not be written: {full}", file=sys.stderr, flush=True)


PEER_GONE = re.compile(r"closed by peer|reset by peer|remote process exited|ncclRemoteError|Broken pipe")


def lost_a_peer(error: Exception) -> bool:
    """Return whether the error is gloo's or NCCL's report that another process, or its machine, is gone."""
    text = str(error)
    by_the_network = re.search("gloo|nccl", text, re.IGNORECASE) is not None
    return isinstance(error, RuntimeError) and by_the_network and PEER_GONE.search(text) is not None


UNEXPLAINED = "training_failed"
SENTENCE = 500
"""Characters of a message that no sentence of ours explains; the log has all of it."""
EXPLAINED: tuple[tuple[type[Exception], str, str], ...] = (
    (CollapseError, "collapsed", "{}"),
    (AlignkitError, "invalid_recipe", "{}"),
    (FloatingPointError, "not_finite", "Training stopped: {}"),
    (MemoryError, "out_of_memory", OUT_OF_MEMORY),
)
"""Errors that a user can act on: (type, code, template of the message)."""


def explain(error: Exception) -> tuple[str, str]:
    """Return (code, message) of a failure."""
    if is_full(error):
        return "disk_full", "The disk is full: free some space and start the job again."
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported to fail
        return "out_of_memory", OUT_OF_MEMORY.format(error)
    for kind, code, sentence in EXPLAINED:
        if isinstance(error, kind):
            return code, sentence.format(error)
    return UNEXPLAINED, textwrap.shorten(f"{type(error).__name__}: {error}", SENTENCE, placeholder=" …")
