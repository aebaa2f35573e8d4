"""The messages and codes that the troubleshooting page explains are those of the code."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tree import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SOURCES = [path for root in ("alignkit", "server/alignkit_server") for path in (ROOT / root).rglob("*.py")]


def first_cells(heading: str) -> list[str]:
    """The first cell of each row of the tables whose first column is `heading`."""
    tables = re.findall(rf"^\| {heading} \|.*\n\|[ -|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    return [row.split("|")[1].strip() for table in tables for row in table.splitlines()]


def texts(source: Path) -> Iterator[str]:
    """Every string of a file but docstrings; of an f-string its fixed parts."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.fixture(scope="module")
def written() -> str:
    return "\n".join(text for source in SOURCES for text in texts(source))


def test_every_message_is_one_of_the_code(written: str) -> None:
    messages = [part.strip() for cell in first_cells("message") for part in re.split(r"…|\*\w+\*", cell)]
    assert len(messages) > 10
    assert [part for part in messages if part and part not in written] == []


def test_every_code_is_one_that_the_service_returns(written: str) -> None:
    codes = [code for cell in first_cells("code") for code in re.findall(r"`(\w+)`", cell)]
    assert len(codes) > 5
    assert [code for code in codes if f"\n{code}\n" not in written] == []
