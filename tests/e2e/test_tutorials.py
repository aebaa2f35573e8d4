"""The tutorials, command by command, and the pages on a finished run; a tiny model stands for SmolLM2."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alignkit.cli import app
from tests import tiny
from tests.docs.blocks import BLOCKS, commands_of
from tests.tree import ROOT

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

FIRST = "docs/tutorials/first-dpo.md"
FINISHED = ("docs/export.md", "docs/interpolate.md", "docs/reports.md")
"""Pages whose commands take the run of the first tutorial."""
HERE = ("export", "interpolate", "report")


def commands(page: str) -> list[list[str]]:
    """The arguments of a page's `alignkit` commands, in order."""
    blocks = [block for block in BLOCKS if block.page == page and block.language == "sh"]
    return [words[1:] for block in blocks for words in commands_of(block) if words[0] == "alignkit"]


def alignkit(arguments: list[str]) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (shlex.join(arguments), done.output, done.exception)
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The reader's folder, with the tree's recipes; the model's tokenizer is trained on the demo's words."""
    made = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_HOME", str(made / "home"))
        patch.setenv("ALIGNKIT_REPORT", "on")
        patch.chdir(made)
        (made / "recipes").symlink_to(ROOT / "recipes")
        rows = map(json.loads, (ROOT / "recipes/demo/train.jsonl").read_text(encoding="utf-8").splitlines())
        texts = [row["input"]["messages"][0]["content"] for row in rows]
        patch.setattr(tiny, "_TEXT", texts)
        tiny.build_tiny_model(made / "home" / "models" / "smollm2-135m-instruct")
        yield made


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """The run of the first tutorial."""
    (recipe,) = (block.text for block in BLOCKS if block.page == FIRST and block.language == "yaml")
    (folder / "first.yaml").write_text(recipe, encoding="utf-8")
    for words in commands(FIRST):
        alignkit(words)
    return folder / "runs" / "first"


def test_the_first_tutorial_ends_in_an_evaluation(run: Path) -> None:
    assert {"report.html", "evaluation.html", "evaluation.json"} <= {path.name for path in run.iterdir()}


@pytest.mark.parametrize("page", ["docs/tutorials/bad-answers.md", "docs/tutorials/distil.md"])
def test_a_tutorial_trains(folder: Path, page: str) -> None:
    for words in commands(page):
        alignkit(words)
        if words[0] == "train":
            (output_dir,) = re.findall(r"^output_dir: (.*)$", (folder / words[1]).read_text(), re.MULTILINE)
            assert (folder / output_dir / "result.json").is_file()


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, id=shlex.join(words))
        for page in FINISHED
        for words in commands(page)
        if words[0] in HERE and "hub" not in words
    ],
)
def test_a_finished_run_is_taken_further(run: Path, words: list[str]) -> None:
    shown = alignkit([word.replace("runs/f_dpo-smollm2", "runs/first") for word in words])
    for path in shown.split():
        assert (run.parents[1] / path).exists(), shown
