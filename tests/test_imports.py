"""Imports inside functions are there to save start-up time or an extra, and say so; circles are import-linter's."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import alignkit

FOLDER = Path(alignkit.__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
REASONS = ("saves ", "an extra")


def blocks(node: ast.AST, *, inside: bool = False) -> Iterator[tuple[int, int]]:
    """First and last line of every run of imports inside a function."""
    inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for field in ("body", "orelse", "finalbody", "handlers"):
        statements: list[ast.stmt] = getattr(node, field, None) or []
        if not isinstance(statements, list):  # a lambda's body
            continue
        run: list[ast.stmt] = []
        for statement in statements:
            if inside and isinstance(statement, ast.Import | ast.ImportFrom):
                run.append(statement)
                continue
            if run:
                yield run[0].lineno, run[-1].end_lineno or 0
                run = []
            yield from blocks(statement, inside=inside)
        if run:
            yield run[0].lineno, run[-1].end_lineno or 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_an_import_inside_a_function_says_why(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()
    for first, last in blocks(ast.parse(text)):
        said = [line.partition("# ")[2] for line in lines[first - 2 : last]]
        assert any(why.startswith(REASONS) for why in said), f"line {first}: {lines[first - 1].strip()}"
