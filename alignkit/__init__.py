"""Alignment fine-tuning of language models: a library, a command and a service.

`import alignkit` costs nothing: what it exports is imported where it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alignkit.noise import drop_noise

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from alignkit import (
        data,
        divergences,
        estimate,
        evaluate,
        kernels,
        losses,
        methods,
        terms,
        token_divergences,
        trainers,
    )
    from alignkit.errors import AlignkitError
    from alignkit.recipe import Recipe
    from alignkit.trainers import (
        BDKDConfig,
        BDKDTrainer,
        D2OConfig,
        D2OTrainer,
        FDPOConfig,
        FDPOTrainer,
        SinKDConfig,
        SinKDTrainer,
        SupervisedTrainer,
    )

drop_noise()

__version__ = "0.2.0"

__all__ = [
    "AlignkitError",
    "BDKDConfig",
    "BDKDTrainer",
    "D2OConfig",
    "D2OTrainer",
    "FDPOConfig",
    "FDPOTrainer",
    "Recipe",
    "SinKDConfig",
    "SinKDTrainer",
    "SupervisedTrainer",
    "__version__",
    "data",
    "divergences",
    "estimate",
    "evaluate",
    "kernels",
    "losses",
    "methods",
    "terms",
    "token_divergences",
    "trainers",
]

_ELSEWHERE = {"AlignkitError": "errors", "Recipe": "recipe"}
"""The modules of the exported names that are not trainers."""


def __getattr__(name: str) -> Any:
    """Import an exported module or name at its first use."""
    if name not in __all__:
        raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
    if name.islower():
        return import_module(f"alignkit.{name}")
    value = getattr(import_module(f"alignkit.{_ELSEWHERE.get(name, 'trainers')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The exported names, for completion and `help()`."""
    return sorted({*globals(), *__all__})
