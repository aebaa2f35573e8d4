"""Making a job by clicks: what is checked and foretold, what is refused, and a whole job from upload to chat."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from playwright.sync_api import Browser, Page, expect

from tests.server.page.browser import FIRST_ROWS, Visitor, needs_chromium, violations
from tests.server.runner.killing import Rig
from tests.server.support import BASE_MODEL, Running, create_job, method, pairs, upload
from tests.tiny import build_tiny_model

pytestmark = [needs_chromium, pytest.mark.slow]


def choose_file(page: Page, content: bytes, name: str = "pairs.jsonl") -> None:
    file = {"name": name, "mimeType": "application/jsonl", "buffer": content}
    page.get_by_label("Upload as the training file").set_input_files(file)  # type: ignore[arg-type]
    expect(page.get_by_label("Training file", exact=True)).to_contain_text(name)


def test_rows_and_cost_are_shown_before_it_starts(
    service: Running, key: str, visitor: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.settings, "price_per_gpu_hour", 2.5)
    page = visitor.signed_in(key, "#/new")
    choose_file(page, pairs(8))
    first = page.get_by_role("article", name="Row 1", exact=True)
    expect(first).to_be_visible(timeout=FIRST_ROWS)
    expect(first.get_by_label("chosen of row 1").locator("mark")).to_contain_text("0.")
    expect(first.get_by_label("rejected of row 1").locator("mark")).to_contain_text("That depends.")
    expect(first.get_by_label("chosen of row 1").locator("mark")).not_to_contain_text("plus")
    forecast = page.get_by_role("region", name="What it takes")
    expect(forecast).to_contain_text("Rows")
    expect(forecast).to_contain_text("under 1 s, by the device's data sheet")
    expect(forecast).to_contain_text(re.compile(r"\d USD, at 2\.50 USD an hour"))
    expect(forecast).to_contain_text("Peak memory")
    page.get_by_role("button", name="Later rows").click()
    expect(page.get_by_role("article", name="Row 4", exact=True)).to_be_visible()
    assert violations(page) == []


def test_options_are_those_of_the_method_with_their_bounds(key: str, visitor: Visitor) -> None:
    page = visitor.signed_in(key, "#/new")
    page.get_by_label("Method").select_option("f_dpo")
    expect(page.get_by_label("divergence", exact=True)).to_have_value("reverse_kl")
    expect(
        page.get_by_text("strength of the divergence from the reference; above 0 to 2; default: auto")
    ).to_be_visible()
    page.get_by_label("Method").select_option("supervised")
    expect(page.get_by_label("divergence", exact=True)).to_have_count(0)


def test_a_program_makes_the_same_job(service: Running, client: OpenAI, key: str, visitor: Visitor) -> None:
    """The script of the page, with the key put in, runs, and its job is what the form's would be."""
    upload(client, pairs(8), "of the page.jsonl")
    page = visitor.signed_in(key, "#/new")
    page.get_by_label("Method").select_option("f_dpo")
    page.get_by_label("Training file", exact=True).select_option(index=1)
    page.get_by_label("beta", exact=True).fill("0.25")
    page.get_by_label("robust", exact=True).select_option("true")
    page.get_by_label("Name", exact=True).fill("it's mine")
    script = page.get_by_label("Python, with the official client").inner_text()
    command = page.get_by_label("Shell").inner_text()
    assert command == (
        f"alignkit jobs submit 'of the page.jsonl' --model {BASE_MODEL} --method f_dpo "
        "--metadata 'name=it'\\''s mine' -p beta=0.25 -p robust=true"
    )
    folder = service.settings.root
    path = folder / "of the page.jsonl"
    path.write_bytes(pairs(8))
    code = script.replace("sk-…", key).replace('"of the page.jsonl"', repr(str(path)))
    exec(compile(code, "script", "exec"), {"print": lambda *_: None})
    (job,) = client.fine_tuning.jobs.list().data
    found = job.to_dict()["method"]["f_dpo"]["hyperparameters"]  # type: ignore[index]
    assert (found["beta"], found["robust"], job.metadata) == (0.25, True, {"name": "it's mine"})


def test_a_refused_option_is_named_where_it_was_given(client: OpenAI, key: str, visitor: Visitor) -> None:
    upload(client)
    page = visitor.signed_in(key, "#/new")
    page.get_by_label("Training file", exact=True).select_option(index=1)
    page.get_by_label("beta", exact=True).fill("7")
    expect(page.get_by_role("alert").first).to_contain_text("beta")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_label("beta", exact=True)).to_have_attribute("aria-invalid", "true")
    assert client.fine_tuning.jobs.list().data == []


def test_a_file_of_a_hundred_thousand_bad_lines_is_refused_in_twenty(
    client: OpenAI, key: str, visitor: Visitor
) -> None:
    page = visitor.signed_in(key, "#/new")
    choose_file(page, b'{"neither": "<script>alert(1)</script>"}\n' * 100_000, "bad.jsonl")
    alert = page.get_by_role("alert").first
    expect(alert).to_contain_text("line 1")
    assert alert.get_by_role("listitem").count() <= 21
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("heading", level=1, name="New job")).to_be_visible()
    assert client.fine_tuning.jobs.list().data == []


def test_a_clone_begins_where_the_job_was(client: OpenAI, key: str, visitor: Visitor) -> None:
    job = create_job(client, method=method(beta=0.3, divergence="jeffreys"), metadata={"name": "first"})
    page = visitor.signed_in(key, f"#/jobs/{job.id}")
    page.get_by_role("link", name="Clone").click()
    expect(page.get_by_label("beta", exact=True)).to_have_value("0.3")
    expect(page.get_by_label("divergence", exact=True)).to_have_value("jeffreys")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("heading", level=1, name="first")).to_be_visible()
    again, before = client.fine_tuning.jobs.list().data
    assert again.to_dict()["method"] == before.to_dict()["method"]
    assert again.training_file == before.training_file


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    """The real service as a process, with its queue, over training and engines that take a moment."""
    folder = tmp_path / "home" / "models" / "tiny"
    # A real model, whose size fits: a configuration without sizes is taken for one of seven billion.
    build_tiny_model(folder)
    rig = Rig(tmp_path / "home")
    yield rig
    rig.clean_up()


@pytest.mark.timeout(600)
def test_a_whole_job_from_upload_to_chat_by_clicks(rig: Rig, browser: Browser) -> None:
    rig.client()
    visitor = Visitor.come(browser, rig.servers[0].url)
    page = visitor.signed_in((rig.home / "first-key").read_text().strip())
    page.get_by_role("link", name="New job").first.click()
    choose_file(page, pairs(8))
    expect(page.get_by_role("article", name="Row 1", exact=True)).to_be_visible(timeout=FIRST_ROWS)
    page.get_by_label("Name", exact=True).fill("by clicks")
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("heading", level=1, name="by clicks")).to_be_visible()
    expect(page.locator("main .status")).to_contain_text("succeeded", timeout=240_000)
    expect(page.get_by_role("img", name="Curve of loss over the steps")).to_be_visible()
    page.get_by_role("link", name=re.compile("^Chat with it")).click()
    expect(page.get_by_role("combobox", name="Right")).to_have_value(re.compile("^ft:tiny:"))
    page.get_by_label("Message").fill("say:Hello from the adapter")
    page.get_by_role("button", name="Ask both").click()
    for side in ("left", "right"):
        expect(page.get_by_label(f"Conversation, {side}")).to_contain_text(
            "Hello from the adapter", timeout=120_000
        )
    visitor.context.close()
    assert visitor.wrong == []
