"""The defaults that the pages of methods and terms write by hand are the declared ones."""

import re
from typing import Any

import pytest

from alignkit import methods
from tests.docs.blocks import DOCS

TABLE = re.compile(r"^\| (?:field|option) \| default \|.*\n\|[ -|]+\n((?:\|.*\n)+)", re.MULTILINE)
NUMBER = re.compile(r"(-?[\d.]+)(?:·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?|10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
SUPERSCRIPTS = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def value(text: str) -> Any:
    """The value that a cell writes, or None for words."""
    if text in {"true", "false"}:
        return text == "true"
    if (name := re.fullmatch(r"`([\w.]+)`", text)) is not None:
        return name[1]
    found = NUMBER.fullmatch(text)
    if found is None:
        return None
    power = (found[2] or found[3] or "0").translate(SUPERSCRIPTS)
    return float(found[1] or 1) * 10 ** int(power)


def written(page: str) -> list[tuple[str, Any]]:
    """(option, default) of the page's tables, where the default is a value."""
    tables = "".join(TABLE.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")))
    found = []
    for row in tables.splitlines():
        names, defaults = (cell.strip() for cell in row.split("|")[1:3])
        options = re.findall(r"`([\w.]+)`", names)
        values = [value(text) for text in (defaults.split(", ") if len(options) > 1 else [defaults])]
        found += [(name, one) for name, one in zip(options, values, strict=False) if one is not None]
    return found


WRITTEN = {
    name: found for name in methods.METHODS if (DOCS / f"{name}.md").exists() and (found := written(name))
}


def test_several_pages_write_defaults() -> None:
    assert {"f_dpo", "d2o", "sinkd", "bd_kd", "ps_kd"} <= WRITTEN.keys()


@pytest.mark.parametrize(
    ("method", "option", "default"),
    [(name, *one) for name, found in WRITTEN.items() for one in found],
)
def test_a_default_is_the_declared_one(method: str, option: str, default: Any) -> None:
    declared = methods.METHODS[method].own_options()[option].default
    assert declared == (pytest.approx(default) if isinstance(default, float) else default)
