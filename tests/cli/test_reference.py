"""The docs page of all commands."""

from alignkit.cli.reference import markdown
from tests.tree import ROOT


def test_the_docs_page_is_the_commands() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == markdown(), "python -m alignkit.cli.reference > docs/cli.md"
