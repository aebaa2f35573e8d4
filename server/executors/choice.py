"""The executors by the name that selects one."""

from collections.abc import Callable

from server.executors.local import LocalExecutor
from server.executors.protocol import Executor
from server.executors.ray.executor import RayExecutor
from server.settings import Settings

EXECUTORS: dict[str, Callable[[Settings], Executor]] = {
    "local": lambda settings: LocalExecutor(grace_seconds=settings.stop_grace_seconds),
    "ray": RayExecutor.connect,
}


def executor_of(settings: Settings) -> Executor:
    """The executor that the settings name; raises AlignkitError where it cannot be used."""
    return EXECUTORS[settings.executor](settings)
