"""Executors by name."""

from collections.abc import Callable

from alignkit_server.executors.local import LocalExecutor
from alignkit_server.executors.protocol import Executor
from alignkit_server.executors.ray.executor import RayExecutor
from alignkit_server.settings import Settings

EXECUTORS: dict[str, Callable[[Settings], Executor]] = {
    "local": lambda settings: LocalExecutor(
        grace_seconds=settings.stop_grace_seconds,
        confined_to=settings.root if settings.confine_training else None,
    ),
    "ray": RayExecutor.connect,
}


def executor_of(settings: Settings) -> Executor:
    """The executor selected by the settings. Raises AlignkitError if it cannot be used."""
    return EXECUTORS[settings.executor](settings)


def trains_on_gpu(settings: Settings) -> bool | None:
    """Whether jobs train on a GPU of another machine; None if this machine trains them."""
    return settings.ray.gpus > 0 if settings.executor == "ray" else None
