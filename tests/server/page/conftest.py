"""A service whose model has a tokenizer and an engine, one browser for all tests, and a visitor for each."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.server.page.browser import Visitor, chromium
from tests.server.page.engine import talking
from tests.server.support import BASE_MODEL, TINY_CONFIG, Running, serve
from tests.tiny import build_tiny_tokenizer


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with talking() as engine, serve(tmp_path_factory.mktemp("home"), engines=engine) as running:
        folder = running.settings.models_dir / BASE_MODEL
        build_tiny_tokenizer(folder)
        (folder / "config.json").write_text(TINY_CONFIG)
        yield running


@pytest.fixture(
    scope="package"
)  # no longer: while Playwright runs, no other test can start a loop of asyncio
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visitor(browser: Browser, service: Running) -> Iterator[Visitor]:
    """A visitor of the service. In the end the browser must have had nothing to complain of."""
    visitor = Visitor.come(browser, service.url)
    yield visitor
    visitor.context.close()
    assert visitor.wrong == []
