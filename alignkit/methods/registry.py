"""Registry of the methods: built-in ones and registered ones by name, a user's own by import path."""

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from alignkit.errors import MethodError, nearest
from alignkit.methods.base import Method
from alignkit.methods.hyperparameters import TERMS, Hyperparameters, in_jobs, job_name

_METHODS: dict[str, type[Method]] = {}
METHODS: Mapping[str, type[Method]] = MappingProxyType(_METHODS)
"""Registered methods by `method.type`. Both recipes and jobs can train each of them."""


def register(method: type[Method]) -> type[Method]:
    """Add a method under its `type`. Raises MethodError if the declaration is unsound or the name is taken."""
    require_sound(method)
    name = method.model_fields["type"].default
    if not name:
        raise MethodError(f"{method.__name__}: expected a type, such as type: Literal['margin'] = 'margin'")
    if _METHODS.get(name, method) is not method:
        raise MethodError(f"the type {name!r} is taken by {_METHODS[name].__name__}; choose another name")
    _METHODS[name] = method
    return method


def get(name: object) -> type[Method]:
    """Return the method of this `type` or at this import path. Raises MethodError, which lists the known names."""
    if isinstance(name, str) and name in _METHODS:
        return _METHODS[name]
    if isinstance(name, str) and ":" in name:
        return _load(name)
    expected = f"expected one of {', '.join(_METHODS)}, or package.module:Class"
    raise MethodError(f"{expected}, found {name!r}{nearest_method(str(name))}")


def nearest_method(name: str) -> str:
    """The end of a message that refuses a method's name: the method that is meant; empty if none is similar."""
    return nearest(_OTHER_NAMES.get(name.casefold(), name), _METHODS)


_OTHER_NAMES = {"sft": "supervised", "fine_tune": "supervised", "kd": "sinkd", "distillation": "sinkd"}
"""Names that other tools give a method."""


def _load(path: str) -> type[Method]:
    """Import a user's own method. This runs the module's code, so it serves recipes only, never jobs."""
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # the module is the user's, and may raise anything
        raise MethodError(f"cannot import {module!r}: {type(error).__name__}: {error}") from error
    if found is None:
        raise MethodError(f"{module} has no {name!r}")
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise MethodError(f"{path}: expected a subclass of alignkit.methods.Method, such as PairMethod")
    require_sound(found)
    return found


def require_sound(method: type[Method]) -> None:
    """Raise MethodError unless the declaration is complete and each of its options is declared once."""
    if not method.rows:
        raise MethodError(f"{method.__name__}: expected `rows`, the kind of row that the method trains on")
    taken = dict.fromkeys([*Hyperparameters.model_fields, TERMS], "every method's hyperparameters")
    for name, field in method.own_options().items():
        if not in_jobs(field):
            continue
        given = job_name(name, field)
        if given in taken:
            raise MethodError(
                f"{method.__name__}: the option {given!r} is declared twice, here and in {taken[given]}; "
                "choose another name"
            )
        taken[given] = f"{method.__name__}.{name}"
