"""The documentation's site builds without a warning, and holds every page."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from alignkit.cli import app
from tests.docs.blocks import BLOCKS, DOCS, commands_of
from tests.tree import ROOT

PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))
CONFIGURATION = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def listed(entries: list[object]) -> list[str]:
    """The files that a navigation names, in order."""
    files: list[str] = []
    for entry in entries:
        assert isinstance(entry, dict)
        for value in entry.values():
            files += [value] if isinstance(value, str) else listed(value)
    return files


def test_the_navigation_lists_every_page_once() -> None:
    assert sorted(listed(CONFIGURATION["nav"])) == PAGES


def test_the_index_for_language_models_lists_every_page() -> None:
    index = (DOCS / "llms.txt").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(([^)]+)\)", index)) == PAGES


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    site = tmp_path / "build" / "site"
    assert (site / "tutorials" / "first-dpo" / "index.html").exists()
    assert "what is trained" in (site / "search.json").read_text(encoding="utf-8")
    for page in site.rglob("*.html"):  # nothing is loaded from another host
        loaded = re.findall(
            r'<(?:script|img|link)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text(encoding="utf-8")
        )
        assert not [url for url in loaded if "canonical" not in url], page


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    folder = (DOCS / page).parent
    for target, anchor in re.findall(
        r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", (DOCS / page).read_text("utf-8")
    ):
        file = (folder / target).resolve() if target else DOCS / page
        assert file.exists(), (page, target)
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [
                re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
            ]
            assert anchor in slugs, (page, target, anchor)


@pytest.mark.parametrize("page", PAGES)
def test_every_table_is_whole(page: str) -> None:
    """A blank line in a table ends it: the rows after it are shown as text."""
    lines = re.sub(
        r"^```.*?^```$", "", (DOCS / page).read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    ).split("\n")
    starts = [
        at for at, line in enumerate(lines) if line.startswith("| ") and not lines[at - 1].startswith("|")
    ]
    assert [lines[at] for at in starts if not re.fullmatch(r"\|[ :|-]+\|", lines[at + 1])] == []


def commands() -> list[tuple[str, list[str]]]:
    """Every `alignkit …` command of a shell block in the pages and the README, with its arguments."""
    return [
        (f"{block.page}: {shlex.join(command)}", command[1:])
        for block in BLOCKS
        if block.language == "sh"
        for command in commands_of(block)
        if command[0] == "alignkit"
    ]


@pytest.mark.parametrize("arguments", [pytest.param(words, id=name) for name, words in commands()])
def test_every_command_of_the_pages_is_taken_by_the_cli(arguments: list[str], tmp_path: Path) -> None:
    command: Any = typer.main.get_command(app)
    context = typer.Context(command, info_name="alignkit")
    words = list(arguments)
    while hasattr(command, "resolve_command"):  # a group of commands
        name, command, words = command.resolve_command(context, words)
        assert command is not None, name
        context = typer.Context(command, info_name=name, parent=context)
    for word in words:  # files that the page's reader has
        if re.fullmatch(r"[\w./-]+\.jsonl", word) and not (ROOT / word).exists():
            (tmp_path / word).touch()
            words[words.index(word)] = str(tmp_path / word)
    command.make_context("alignkit", words, parent=context)
