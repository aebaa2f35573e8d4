"""What can go wrong between a checkpoint and an answer, in words that may leave the machine."""

import re

from alignkit.errors import AlignkitError

_ABSOLUTE_PATH = re.compile(r"(?<![\w:/.~])~?/(?:[^\s/'\"`:,;()<>\[\]]+/)+([^\s/'\"`:,;()<>\[\]]*)")


class EngineError(AlignkitError):
    """An engine cannot answer. `code` is engine_unavailable (not installed, or its model is missing), engine_failed
    (it does not start, or died) or engine_stopped (the service is shutting down)."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class AdapterError(AlignkitError):
    """An adapter cannot be published: the engine could not serve it, or its name is taken."""


class CanaryError(AlignkitError):
    """The engine does not answer as the adapter was trained; the message has the numbers."""


def scrub_paths(text: str) -> str:
    """`text` with every absolute path cut to its last part, so that an answer says nothing about the machine."""
    return _ABSOLUTE_PATH.sub(r"…/\1", text)
