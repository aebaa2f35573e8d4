"""Whole signatures for trainers that hand most of their arguments on to TRL's."""

import inspect
from collections.abc import Callable
from typing import TypeVar

from peft import PeftModel
from transformers import PreTrainedModel

Model = str | PreTrainedModel | PeftModel
"""A model, or the folder or hub id to load one from."""

Init = TypeVar("Init", bound=Callable[..., None])
_VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def shows_parameters_of(base: type, *without: str) -> Callable[[Init], Init]:
    """Decorate an `__init__` whose `**kwargs` go to `base`: its signature, as `help()` shows it, names each of them.

    `without`: parameters of `base` that may not be given, as the decorated function gives them itself.
    """

    def decorate(init: Init) -> Init:
        signature = inspect.signature(init)
        own = {name: one for name, one in signature.parameters.items() if one.kind not in _VARIADIC}
        passed_on = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, one in inspect.signature(base.__init__).parameters.items()  # type: ignore[misc]
            if one.kind not in _VARIADIC and name not in own and name not in without
        ]
        whole = signature.replace(parameters=[*own.values(), *passed_on])
        init.__signature__ = whole  # type: ignore[attr-defined]
        return init

    return decorate
