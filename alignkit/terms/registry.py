"""Registry of the terms by `type`. Recipes and jobs name a term by it; import paths are refused."""

from collections.abc import Mapping
from typing import Any

from alignkit.errors import MethodError, nearest
from alignkit.terms.align_groups import AlignGroups
from alignkit.terms.anchor import Anchor
from alignkit.terms.base import Term
from alignkit.terms.early_learning import EarlyLearning
from alignkit.terms.repel import Repel
from alignkit.terms.robust import Robust
from alignkit.terms.thresholds import Thresholds

BUILT_IN: tuple[type[Term], ...] = (
    Robust,
    AlignGroups,
    EarlyLearning,
    Thresholds,
    Anchor,
    Repel,
)
_TERMS: dict[str, type[Term]] = {term.model_fields["type"].default: term for term in BUILT_IN}


def available() -> tuple[str, ...]:
    """Return the types of all terms."""
    return tuple(_TERMS)


def get(type: object) -> type[Term]:  # noqa: A002 - a recipe's key
    """Return the term of this `type`. Raises MethodError, which lists the known types."""
    if isinstance(type, str) and type in _TERMS:
        return _TERMS[type]
    raise MethodError(f"expected one of {', '.join(_TERMS)}, found {type!r}{nearest(str(type), _TERMS)}")


def fitting(method: Any) -> Mapping[str, type[Term]]:
    """Return the terms by type that a method, given as a class, may take."""
    return {name: term for name, term in _TERMS.items() if term.misfit(method) is None}
