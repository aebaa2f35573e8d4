"""The pictures of docs/: made here, so that they show the page as it is.

`ALIGNKIT_WRITE_PICTURES=1 python -m pytest -m slow tests/server/page/test_pictures.py` writes them anew; otherwise
they are made and only compared in size, since fonts differ between machines.
"""

import os
import struct
from pathlib import Path

import pytest
from openai import OpenAI
from playwright.sync_api import Page, expect

from tests.server.page.browser import FIRST_ROWS, Visitor, needs_chromium
from tests.server.page.runs import finish, run, tell
from tests.server.support import BASE_MODEL, Running, create_job, pairs, upload
from tests.tree import ROOT

pytestmark = [needs_chromium, pytest.mark.slow]

FOLDER = ROOT / "docs" / "page"
SIZE = {"width": 1120, "height": 720}
LARGEST = 150_000
"""Bytes of one picture in the repository."""


def size_of(png: bytes) -> tuple[int, int]:
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def take(page: Page, name: str, folder: Path) -> None:
    page.evaluate("document.activeElement?.blur()")
    page.wait_for_timeout(500)  # curves have their size, notices are drawn
    path = folder / f"{name}.png"
    page.screenshot(path=path, animations="disabled")
    taken = (FOLDER / path.name).read_bytes()
    assert size_of(taken) == size_of(path.read_bytes()) == (SIZE["width"], SIZE["height"])
    assert len(taken) < LARGEST


def test_the_main_pages_are_pictured(service: Running, visitor: Visitor, tmp_path: Path) -> None:
    folder = FOLDER if os.environ.get("ALIGNKIT_WRITE_PICTURES") else tmp_path
    folder.mkdir(exist_ok=True)
    key = service.new_key("pictured")
    with service.client(key) as client:
        gentle, strict, tuned = fill(service, client)
    page = visitor.signed_in(key)
    page.set_viewport_size(SIZE)  # type: ignore[arg-type]
    expect(page.get_by_text("36 / 60")).to_be_visible()
    take(page, "jobs", folder)
    page.goto(f"{visitor.url}/#/jobs/{gentle}")
    expect(page.get_by_role("img").first).to_be_visible()
    take(page, "job", folder)
    page.get_by_role("heading", name="Answers and the collapse guard").scroll_into_view_if_needed()
    page.get_by_role("table", name="Answers of two evaluations").scroll_into_view_if_needed()
    take(page, "answers", folder)
    page.goto(f"{visitor.url}/#/compare?jobs={gentle},{strict}")
    page.get_by_role("img", name="gentle, beta 0.1: margin").scroll_into_view_if_needed()
    take(page, "compare", folder)
    page.goto(f"{visitor.url}/#/new?clone={gentle}")
    page.get_by_role("article", name="Row 2", exact=True).scroll_into_view_if_needed(timeout=FIRST_ROWS)
    expect(page.get_by_role("region", name="What it takes")).to_contain_text("Tokens")
    take(page, "new-job", folder)
    page.goto(f"{visitor.url}/#/playground?a={BASE_MODEL}&b={tuned}")
    page.get_by_label("Colour tokens by log-ratio").check()
    page.get_by_label("Message").fill("Is the sky blue?")
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_label("Conversation, right").locator(".tokens")).to_contain_text("blue?")
    expect(page.get_by_label("Conversation, left").locator(".tokens")).to_contain_text("blue?")
    take(page, "playground", folder)


def fill(service: Running, client: OpenAI) -> tuple[str, str, str]:
    """A project with something of every kind; the ids of two jobs to compare, and the model of the first."""
    file = upload(client, pairs(40), "support-pairs.jsonl")
    strict = run(service, client, beta=0.5, training_file=file, metadata={"name": "strict, beta 0.5"})
    finish(service, strict)
    gentle = run(service, client, beta=0.1, training_file=file, metadata={"name": "gentle, beta 0.1"})
    tuned = finish(service, gentle, name="ft:tiny-llama:support:gentle:a1b2c3d4")
    ruined = run(service, client, collapses=True, training_file=file, metadata={"name": "rate too high"})
    tell(service, ruined, "The model may have collapsed at step 45", level="warn")
    service.ledger.transition(ruined, "cancelled", only_from=("running",))
    run(service, client, steps=36, training_file=file, metadata={"name": "longer answers"})
    for number in (1, 2):
        create_job(client, training_file=file, metadata={"name": f"seed {number}"}, seed=number)
    return gentle, strict, tuned
