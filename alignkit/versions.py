"""Warns about installed packages outside the versions that alignkit was tested with.

alignkit subclasses trainers and relies on names that may change with any release, so an untested version may fail or
train something else. pip enforces the ranges; this warning is for environments installed in other ways.
"""

import os
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

WATCHED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
"""Packages whose internals training relies on. Their tested ranges are alignkit's requirements."""


class UntestedVersionWarning(UserWarning):
    """An installed package is older or newer than the versions that alignkit was tested with."""


def warn_if_untested() -> None:
    """Give one warning that names each watched package outside its tested range. Never raises."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    untested = list(_untested())
    if untested:
        found = "; ".join(untested)
        message = f"alignkit is not tested with these versions, which may fail or train differently: {found}"
        warnings.warn(message, UntestedVersionWarning, stacklevel=3)


def _untested() -> Iterator[str]:
    for requirement in _tested():
        try:
            found = Version(version(requirement.name))
        except (PackageNotFoundError, InvalidVersion):
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            bounds = ",".join(sorted(map(str, requirement.specifier), reverse=True))
            yield f"{requirement.name} {found}, tested {bounds}"


def _tested() -> Iterator[Requirement]:
    """alignkit's requirements on the watched packages; none if alignkit runs without being installed."""
    try:
        texts = requires("alignkit") or []
    except PackageNotFoundError:
        return
    for requirement in map(Requirement, texts):
        if requirement.name in WATCHED and requirement.marker is None:
            yield requirement
