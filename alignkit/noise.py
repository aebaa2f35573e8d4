"""Warnings and progress bars of other libraries that no user of this one can act on, or read in a file."""

import logging
import os
import sys

NOISE: dict[str, str] = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "DeepSpeed": "Setting accelerator to CPU",
}
"""Logger -> the beginning of the message that it gives at its import: an optional kernel, and no GPU."""


class _Without(logging.Filter):
    """Drops the messages that begin with a text."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self._beginning)


def drop_noise() -> None:
    """Let the libraries' loggers drop those messages; before the libraries are imported."""
    for name, beginning in NOISE.items():
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Without) for one in logger.filters):
            logger.addFilter(_Without(beginning))


def no_bars_in_files() -> None:
    """Turn the libraries' progress bars off where standard error is no terminal; before the libraries are imported.

    A user's own `TQDM_DISABLE` or `HF_HUB_DISABLE_PROGRESS_BARS` is kept.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
