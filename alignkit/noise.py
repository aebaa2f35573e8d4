"""Warnings of other libraries that no user of this one can act on."""

import logging

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
