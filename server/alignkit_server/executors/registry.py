"""Executors by name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.estimate import Device, unmeasured
from alignkit_server.executors.leases import DeviceLeases, local_gpus, nvidia_gpus
from alignkit_server.executors.local import LocalExecutor
from alignkit_server.executors.protocol import Executor
from alignkit_server.executors.ray.executor import RayExecutor
from alignkit_server.executors.standbys import Standbys
from alignkit_server.settings import Settings

EXECUTORS: dict[str, Callable[[Settings], Executor]] = {
    "local": lambda settings: LocalExecutor(
        grace_seconds=settings.stop_grace_seconds,
        confined_to=settings.root if settings.confine_training else None,
        leases=_leases_of(settings),
        standbys=_standbys_of(settings),
    ),
    "ray": RayExecutor.connect,
}


def executor_of(settings: Settings) -> Executor:
    """The executor selected by the settings. Raises AlignkitError if it cannot be used."""
    return EXECUTORS[settings.executor](settings)


def _leases_of(settings: Settings) -> Callable[[Callable[[Path], bool]], DeviceLeases] | None:
    """What makes the leases of this machine's GPUs; None where it has none."""
    if not local_gpus():
        return None
    reserved = [str(index) for index in settings.engine.gpus or ()]
    amd = not nvidia_gpus()
    return lambda alive: DeviceLeases(settings.leases_dir, local_gpus, alive, reserved=reserved, amd=amd)


def _standbys_of(settings: Settings) -> Standbys | None:
    seconds = settings.standby_seconds
    return Standbys(settings.standbys_dir, seconds=seconds) if seconds else None


def job_gpus(settings: Settings) -> int | None:
    """GPUs that a job may have at the most; None where that is not known here."""
    if settings.executor == "ray":
        return None
    reserved = {str(index) for index in settings.engine.gpus or ()}
    return sum(name not in reserved for name in local_gpus())


def gpus_of(recipe: Mapping[str, Any], settings: Settings) -> int:
    """GPUs that a job of this recipe trains on, over all nodes; 1 where it trains on none."""
    if settings.executor == "ray":
        return max(1, settings.ray.nodes * settings.ray.gpus)
    return int((recipe.get("training") or {}).get("devices") or 1)


def trains_on_gpu(settings: Settings) -> bool | None:
    """Whether jobs train on a GPU of another machine; None if this machine trains them."""
    return settings.ray.gpus > 0 if settings.executor == "ray" else None


def job_device(settings: Settings) -> Device | None:
    """The device that a job has for itself; None where it trains on machines that this server does not see.

    Jobs that run at once on a CPU share its memory.
    """
    if settings.executor == "ray":
        return None
    device = unmeasured()
    if device.is_gpu:
        return device
    return replace(device, memory=device.memory // slots_of(settings))


def slots_of(settings: Settings) -> int:
    """Jobs that run at once: as set, else as many as the GPUs hold of the usual size, or one."""
    if settings.training_slots is not None:
        return settings.training_slots
    gpus = job_gpus(settings) or 0
    return max(1, gpus // settings.gpus_per_job)
