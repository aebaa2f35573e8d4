"""Every causal architecture of the installed transformers, as the product and docs/models.md have it."""

from typing import Any

import pytest
import transformers
import yaml

from tests.architectures import BEGIN, KNOWN, NAMES, PAGE, outcome


def known() -> dict[str, Any]:
    """The recorded support of architectures."""
    found: dict[str, Any] = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
    return found


def test_every_architecture_is_written_down_once() -> None:
    written = known()
    named = [*written["agrees"], *written["refused"], *written["not_built"]]
    if written["transformers"] == transformers.__version__:
        assert sorted(named) == sorted(NAMES)
    assert len(named) == len(set(named))


def test_the_page_has_the_table_that_the_product_reads() -> None:
    page = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2]
    written = known()
    agreeing = page.partition("**Agree**: ")[2].partition(".\n")[0]
    assert agreeing.replace("`", "").split(", ") == written["agrees"]
    for kind, title in (("refused", "refused"), ("not_built", "not built tiny")):
        rows = [line.split("`")[1] for line in page.splitlines() if f"` | {title} |" in line]
        assert rows == sorted(written[kind])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_fares_as_it_is_written_down(name: str) -> None:
    written = known()
    expected = next(kind for kind in ("agrees", "refused", "not_built") if name in written[kind])
    found = outcome(name)
    assert found.kind == expected, found.why
