"""`--json`: every command that prints a table has it, and what it prints keeps its keys."""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
import typer

from alignkit.cli import app
from alignkit.cli.json_shapes import SHAPES, written
from tests.cli.conftest import Run
from tests.cli.shapes import lacking
from tests.server.support import BASE_MODEL, pairs
from tests.tree import ROOT

TABLES = {"rows", "facts", "show"}
"""The functions of `output` that print tables."""
LLAMA = "recipes/f_dpo/llama-3.1-8b.yaml"


def leaves(name: str, command: Any) -> list[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        return [(name, command)]
    return [
        leaf for part, inner in command.commands.items() for leaf in leaves(f"{name} {part}".strip(), inner)
    ]


COMMANDS = leaves("", typer.main.get_command(app))


def prints_a_table(function: Any) -> bool:
    """Whether the function, or one of its module that it calls, calls a function of `output` that prints tables."""
    module = inspect.getmodule(function)
    assert module is not None
    bodies = {
        node.name: node
        for node in ast.parse(inspect.getsource(module)).body
        if isinstance(node, ast.FunctionDef)
    }
    left, seen = [function.__name__], set()
    while left:
        name = left.pop()
        seen.add(name)
        for call in (node for node in ast.walk(bodies[name]) if isinstance(node, ast.Call)):
            called = call.func
            if isinstance(called, ast.Attribute) and called.attr in TABLES:
                if isinstance(called.value, ast.Name) and called.value.id == "output":
                    return True
            elif isinstance(called, ast.Name) and called.id in bodies and called.id not in seen:
                left.append(called.id)
    return False


def test_every_command_that_prints_a_table_has_json() -> None:
    with_tables = [name for name, command in COMMANDS if prints_a_table(inspect.unwrap(command.callback))]
    assert {"jobs list", "eval", "estimate", "sweep"} <= set(with_tables)
    with_json = {
        name for name, command in COMMANDS if "--json" in {o for p in command.params for o in p.opts}
    }
    assert [name for name in with_tables if name not in with_json] == []


def test_json_is_described_as_objects_of_the_api_or_by_its_keys() -> None:
    for name, command in COMMANDS:
        for param in command.params:
            if "--json" in param.opts and name not in SHAPES:
                assert "the API's" in param.help or "evaluation.json" in param.help, name


@pytest.mark.parametrize(
    "command",
    [
        ("data check", "pairs.jsonl", "--model", BASE_MODEL),
        ("divergences",),
        ("estimate", LLAMA, "--device", "h100", "--stage", "zero3", "--rows", "100", "--price", "2"),
        ("methods",),
        ("models list",),
        ("settings",),
        ("terms",),
    ],
    ids=lambda command: command[0],
)
def test_the_keys_that_the_page_names_are_printed(run: Run, command: tuple[str, ...]) -> None:
    Path("pairs.jsonl").write_bytes(pairs(4))
    Path("recipes").symlink_to(ROOT / "recipes")
    name, *rest = command
    found = run(*name.split(), *rest, "--json").json
    assert found
    assert lacking(SHAPES[name], found) == []


def test_a_missing_key_is_found() -> None:
    shape = {"points": [{"name": None, "values": {"*": {"low": None}}}]}
    assert written(shape) == "{points: [{name, values: {*: {low}}}]}"
    found = {"points": [{"name": 1, "values": {"beta": {"low": 1}, "alpha": {}}}, {"values": None}]}
    assert lacking(shape, found) == [".points[].values.alpha.low", ".points[].name"]
