"""A real Chromium, and the service that its pages talk to."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, expect, sync_playwright

CHROMIUM = os.environ.get("ALIGNKIT_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None,
    reason="needs Chromium: install Debian's package chromium, or name one in ALIGNKIT_TEST_CHROMIUM",
)
WIDE = {"width": 1280, "height": 860}
NARROW = {"width": 360, "height": 740}
SECONDS = 60
"""In which what is expected must come to pass, on a machine that others use too."""
FIRST_ROWS = 240_000
"""Milliseconds until a fresh server has read its first rows: it imports what reads them before."""
QUIET = ("Failed to load resource", "Password forms should have")
"""The browser's own words for an answer of 400 or more, which the page shows, and for a form with no user name."""


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        expect.set_options(timeout=1000 * SECONDS)
        yield browser
        browser.close()


@dataclass
class Visitor:
    """Somebody with a browser of their own: nothing of another visitor's is in it."""

    context: BrowserContext
    url: str
    wrong: list[str] = field(default_factory=list)
    """What the browser complained of: errors, refusals by the policy, dialogs that a script opened."""

    @classmethod
    def come(cls, browser: Browser, url: str, **options: Any) -> "Visitor":
        """A visitor with an empty browser, whose clock and words are the same on every machine."""
        given = {"viewport": WIDE, "timezone_id": "UTC", "locale": "en-GB", "accept_downloads": True}
        visitor = cls(browser.new_context(**given | options), url)
        visitor.context.set_default_timeout(1000 * SECONDS)
        return visitor

    def tab(self, place: str = "") -> Page:
        """A new tab at a place of the page."""
        page = self.context.new_page()
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.wrong.append(str(error)))
        page.on("dialog", lambda dialog: (self.wrong.append(dialog.message), dialog.dismiss()))
        page.goto(f"{self.url}/{place}")
        return page

    def signed_in(self, key: str, place: str = "") -> Page:
        """A new tab, in which that key was signed in with."""
        page = self.tab(place)
        page.get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Sign out").wait_for()
        return page

    def _listen(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not message.text.startswith(QUIET):
            self.wrong.append(message.text)


def violations(page: Page) -> list[str]:
    """What axe finds wrong with a page, for people who see, hear or point differently."""
    page.wait_for_timeout(100)  # what was just drawn has its final colours
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


__all__ = ["CHROMIUM", "NARROW", "Error", "Visitor", "chromium", "needs_chromium", "violations"]
