"""The list of methods, as data and as a page."""

import json
from pathlib import Path

from typer.testing import CliRunner

from alignkit.cli import app
from alignkit.methods import METHODS
from alignkit.methods.describe import markdown


def test_the_docs_page_is_the_declarations() -> None:
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    assert page.read_text(encoding="utf-8") == markdown(), "alignkit methods --markdown > docs/methods.md"


def test_the_command_lists_every_method_with_its_purpose() -> None:
    shown = CliRunner().invoke(app, ["methods"]).output
    for name, method in METHODS.items():
        assert name in shown
        assert method.summary()[:30] in shown


def test_the_commands_json_has_both_bounds_of_an_option() -> None:
    methods = {
        entry["type"]: entry for entry in json.loads(CliRunner().invoke(app, ["methods", "--json"]).output)
    }
    assert methods.keys() == METHODS.keys()
    dpo = methods["dpo"]
    assert dpo["options"]["beta"]["maximum"] == 100
    assert [arm.get("maximum") for arm in dpo["hyperparameters"]["beta"]["anyOf"]] == [None, 2]
    assert methods["sinkd"]["hyperparameters"]["teacher"]["required"]
