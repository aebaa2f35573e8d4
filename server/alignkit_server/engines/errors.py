"""Errors of publishing and serving, with messages that contain no paths of this machine."""

from alignkit.errors import AlignkitError


class EngineError(AlignkitError):
    """An engine cannot answer.

    `code` is engine_unavailable (no vLLM, or the model is missing), engine_failed (it does not start, or
    died), engine_stopped (the service is shutting down) or engine_busy (all engines are in use).
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class AdapterError(AlignkitError):
    """An adapter cannot be published: the engine could not serve it, or its name is taken."""


class CanaryError(AlignkitError):
    """The engine does not answer as the model was trained; the message has the numbers."""
