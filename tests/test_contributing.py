"""CONTRIBUTING.md followed to the letter, in a copy of the tree."""

import compileall
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RECIPE = re.compile(r"^## (Add [^\n]*)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
RECIPES = dict(RECIPE.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("tree") / "alignkit")


@pytest.fixture
def edited(tmp_path: Path) -> Path:
    return copied(tmp_path / "alignkit")


def copied(copy: Path) -> Path:
    """A copy of what git knows of the tree, or would."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_works_as_it_is_written(tree: Path, recipe: str) -> None:
    follow(tree, recipe, {"python": new_file, "diff": change, "sh": run})


def test_every_recipe_s_code_fits_the_tree(edited: Path) -> None:
    """Without its commands, which the slow suite runs."""
    for recipe in RECIPES:
        follow(edited, recipe, {"python": new_file, "diff": change, "sh": lambda *_: None})
    assert compileall.compile_dir(edited, quiet=1, workers=1)


def follow(tree: Path, recipe: str, steps: dict[str, Callable[[Path, str], None]]) -> None:
    """Take each block's step, by its language."""
    blocks = BLOCK.findall(RECIPES[recipe])
    assert blocks, "a recipe shows its code"
    for language, text in blocks:
        steps[language](tree, text)


def new_file(tree: Path, text: str) -> None:
    """Write a block to the path in its first line."""
    first, _, code = text.partition("\n")
    path = tree / first.removeprefix("# ")
    assert not path.exists(), f"{first}: is there already"
    path.parent.mkdir(exist_ok=True)
    path.write_text(code, encoding="utf-8")


def change(tree: Path, text: str) -> None:
    """Apply hunks whose lines of context and removal stand in the file exactly once."""
    for name, hunks in re.findall(r"^\+\+\+ b/(\S+)\n(.*?)(?=^--- |\Z)", text, re.MULTILINE | re.DOTALL):
        path = tree / name
        for hunk in re.split(r"^@@\n", hunks, flags=re.MULTILINE)[1:]:
            lines = hunk.splitlines()
            before = "".join(f"{line[1:]}\n" for line in lines if line[:1] in {" ", "-", ""})
            after = "".join(f"{line[1:]}\n" for line in lines if line[:1] in {" ", "+", ""})
            content = path.read_text(encoding="utf-8")
            assert content.count(before) == 1, f"{name} has {content.count(before)} times:\n{before}"
            path.write_text(content.replace(before, after), encoding="utf-8")


def run(tree: Path, text: str) -> None:
    """Run a block's lines, by the interpreter that runs this test."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'server'}",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["sh", "-e", "-c", text], cwd=tree, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
