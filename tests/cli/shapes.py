"""Whether a command's JSON has the keys of its shape."""

from typing import Any


def lacking(shape: Any, found: Any, place: str = "") -> list[str]:
    """The places of a shape that a command's JSON lacks; null may stand for any of them."""
    if shape is None or found is None:
        return []
    if isinstance(shape, list):
        if not isinstance(found, list):
            return [f"{place}[]"]
        return [gap for one in found for gap in lacking(shape[0], one, f"{place}[]")]
    if not isinstance(found, dict):
        return [place]
    named = dict.fromkeys(found, shape["*"]) if "*" in shape else shape
    return [
        gap
        for name, inner in named.items()
        for gap in (lacking(inner, found[name], f"{place}.{name}") if name in found else [f"{place}.{name}"])
    ]
