"""The playground, the comparison, and the places for files, models, limits and keys, in Chromium."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from openai import OpenAI
from playwright.sync_api import expect

from tests.server.models.test_exports import Tuned
from tests.server.page.browser import NARROW, Visitor, needs_chromium, violations
from tests.server.page.engine import FOREIGN
from tests.server.page.runs import MARKUP, finish, report, run
from tests.server.support import BASE_MODEL, Running, method, upload

pytestmark = [needs_chromium, pytest.mark.slow]


def test_a_model_is_saved_in_the_form_that_was_chosen(
    service: Running, tmp_path: Path, visitor: Visitor
) -> None:
    tuned = Tuned(service, tmp_path)
    page = visitor.signed_in(tuned.key, "#/models")
    row = page.get_by_role("row").filter(has_text=tuned.name)
    row.get_by_label(f"Form of {tuned.name}").select_option("gguf")
    with page.expect_download(timeout=120_000) as download:
        row.get_by_role("button", name="Download").click()
    with tarfile.open(download.value.path()) as archive:
        assert [name for name in archive.getnames() if name.endswith(".gguf")]
    assert violations(page) == []
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text(tuned.name)).to_have_count(0)
    shutil.rmtree(tuned.base)  # other tests count the base models


def test_a_preference_becomes_a_row_to_train_on(
    service: Running, client: OpenAI, key: str, visitor: Visitor
) -> None:
    tuned = finish(service, run(service, client, steps=1))
    page = visitor.signed_in(key, f"#/playground?a={BASE_MODEL}&b={tuned}")
    page.get_by_label("Message").fill("What is new?")
    page.get_by_label("Message").press("Control+Enter")
    left, right = page.get_by_label("Conversation, left"), page.get_by_label("Conversation, right")
    expect(left).to_contain_text(f"{BASE_MODEL} heard: What is new?")
    expect(right).to_contain_text("heard: What is new?")
    page.get_by_role("button", name="Right is better").click()
    expect(page.get_by_text("1 row, kept in this browser")).to_be_visible()
    assert violations(page) == []
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    (row,) = map(json.loads, Path(download.value.path()).read_text(encoding="utf-8").splitlines())
    assert row["input"]["messages"] == [{"role": "user", "content": "What is new?"}]
    assert row["non_preferred_output"][0]["content"] == f"{BASE_MODEL} heard: What is new?"
    assert row["preferred_output"][0]["content"] != row["non_preferred_output"][0]["content"]
    page.get_by_role("button", name="Upload and train on them").click()
    expect(page.get_by_role("article", name="Row 1", exact=True)).to_be_visible()
    assert next(file.filename for file in client.files.list()) == "preferences.jsonl"


def test_tokens_are_coloured_by_how_much_likelier_the_right_model_finds_them(
    service: Running, client: OpenAI, key: str, visitor: Visitor
) -> None:
    """The engine's rule: against -1 of the base model, the tuned one gives -0.25 and -2.5 by turns."""
    tuned = finish(service, run(service, client, steps=1))
    page = visitor.signed_in(key, f"#/playground?a={BASE_MODEL}&b={tuned}")
    page.get_by_label("Message").fill("Say one two three")
    page.get_by_role("button", name="Ask both").click()
    page.get_by_label("Colour tokens by log-ratio").check()
    for side in ("left", "right"):
        tokens = page.get_by_label(f"Conversation, {side}").locator(".tokens span")
        expect(tokens).to_have_text(["one ", "two ", "three "])
        assert tokens.evaluate_all("(found) => found.map((token) => [token.className, token.title])") == [
            ["more-2", "log-ratio +0.75"],
            ["less-3", "log-ratio -1.5"],
            ["more-2", "log-ratio +0.75"],
        ]
    page.get_by_text("log-ratio 0 over 3 tokens").first.click()
    expect(page.get_by_role("row", name="two -2.5 -1 -1.5")).to_be_visible()
    assert violations(page) == []
    page.get_by_role("combobox", name="Left").select_option(tuned)
    page.get_by_label("Message").fill("Say again")
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_text("log-ratio 0 over 1 token")).to_have_count(2)


def test_an_answer_that_fills_the_context_is_coloured_without_its_last_token(
    key: str, visitor: Visitor
) -> None:
    page = visitor.signed_in(key, f"#/playground?a={BASE_MODEL}&b={BASE_MODEL}")
    page.get_by_label("Colour tokens by log-ratio").check()
    page.get_by_label("Message").fill("Fill one two three")
    page.get_by_role("button", name="Ask both").click()
    left = page.get_by_label("Conversation, left")
    expect(left.locator(".tokens span")).to_have_text(["one ", "two "])
    expect(left).to_contain_text("over 2 tokens, without the last one")


def test_tokens_of_two_vocabularies_are_not_compared(
    service: Running, client: OpenAI, key: str, visitor: Visitor
) -> None:
    other = finish(service, run(service, client, steps=1), name=f"ft:{FOREIGN}:project::1")
    page = visitor.signed_in(key, f"#/playground?a={BASE_MODEL}&b={other}")
    page.get_by_label("Colour tokens by log-ratio").check()
    page.get_by_label("Message").fill("Say hello")
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_label("Conversation, left").get_by_role("alert")).to_contain_text(
        "have no common vocabulary"
    )
    expect(page.get_by_label("Conversation, left")).to_contain_text("hello")


def test_prompts_and_rows_are_kept_for_the_project_in_every_tab(
    service: Running, key: str, visitor: Visitor
) -> None:
    page = visitor.signed_in(key, "#/playground")
    other = visitor.tab("#/playground")
    expect(other.get_by_label("Message")).to_be_visible()
    for tab, question in ((page, "Say a"), (other, "Say b")):
        tab.get_by_label("Message").fill(question)
        tab.get_by_text("System prompt, temperature, saved prompts").click()
        tab.get_by_role("button", name="Save the message as a prompt").click()
        tab.get_by_role("button", name="Ask both").click()
        tab.get_by_role("button", name="Left is better").click()
    for tab in (page, other):
        expect(tab.get_by_text("2 rows, kept in this browser")).to_be_visible()
    page.get_by_label("Saved prompts").select_option("Say b")
    expect(page.get_by_label("Message")).to_have_value("Say b")
    page.get_by_role("button", name="Forget this prompt").click()
    expect(other.get_by_label("Saved prompts").get_by_role("option")).to_have_text(
        ["choose one to ask", "Say a"]
    )
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Key", exact=True).fill(service.new_key("another-in-the-same-browser"))
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_label("Message")).to_be_visible()
    expect(page.get_by_text("kept in this browser")).to_have_count(1)  # the hint of the saved prompts
    other.close()


def test_what_a_model_says_is_text(key: str, visitor: Visitor) -> None:
    page = visitor.signed_in(key, "#/playground")
    page.get_by_label("Message").fill(f"Say {MARKUP}")
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_label("Conversation, left")).to_contain_text(MARKUP)
    assert page.locator("main img, main script").count() == 0


def test_an_engine_that_refuses_is_heard(key: str, visitor: Visitor) -> None:
    page = visitor.signed_in(key, "#/playground?a=no-such-model")
    page.get_by_label("Message").fill("Hello")
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_label("Conversation, left").get_by_role("alert")).to_contain_text("no-such-model")
    expect(page.get_by_label("Conversation, right")).to_contain_text("heard: Hello")
    expect(page.get_by_role("button", name="Left is better")).to_be_disabled()


def test_runs_are_compared(service: Running, client: OpenAI, key: str, visitor: Visitor) -> None:
    file = upload(client)
    for beta, name in ((0.1, "gentle"), (0.5, "strict")):
        run(service, client, beta=beta, training_file=file, metadata={"name": name})
    page = visitor.signed_in(key)
    for name in ("gentle", "strict"):
        page.get_by_label(f"Compare {name}").check()
    page.get_by_role("link", name="Compare 2").click()
    differing = page.get_by_role("table", name="Settings of the jobs that differ").get_by_role("row")
    expect(differing.filter(has_text="beta")).to_contain_text("0.1")
    expect(differing.filter(has_text="beta")).to_contain_text("0.5")
    expect(differing.filter(has_text="lora_rank")).to_have_count(0)
    page.get_by_text("settings that are the same").click()
    same = page.get_by_role("table", name="Settings of the jobs that are the same")
    expect(same.get_by_role("row", name="lora_rank")).to_be_visible()
    expect(page.get_by_role("img", name="Curve of valid loss over the steps")).to_be_visible()
    expect(page.get_by_role("img", name="gentle: margin")).to_be_visible()
    expect(page.get_by_role("table", name="Each run's last answers")).to_contain_text("Yes, by day")
    assert violations(page) == []


def test_a_sweep_is_compared_along_its_frontier(
    service: Running, client: OpenAI, key: str, visitor: Visitor
) -> None:
    """Six are drawn as curves. On the frontier are those that no other beats in margin at their KL or less."""
    file = upload(client)
    for number in range(8):
        name = f"sweep {number}"
        run(service, client, beta=0.1 * (number + 1), steps=15, training_file=file, metadata={"name": name})
    beaten = run(service, client, beta=0.1, steps=15, training_file=file, metadata={"name": "sweep beaten"})
    report(service, beaten, 16, {"valid_rewards_margins": 0.01, "valid_answers_kl": 0.25})
    far = run(service, client, beta=0.1, steps=15, training_file=file, metadata={"name": "sweep far"})
    report(service, far, 16, {"valid_rewards_margins": 2.0, "valid_answers_kl": 0.5})
    page = visitor.signed_in(key, "#/jobs?text=sweep")
    page.get_by_role("link", name="Compare all 10 found").click()
    expect(page.get_by_text("Of the first 6 jobs")).to_be_visible()
    frontier = page.get_by_role("region", name="Reward against KL")
    expect(frontier.locator("circle")).to_have_count(10)
    said = frontier.get_by_role("img").get_attribute("aria-label") or ""
    assert "sweep 7: margin 1.17 at KL 0.075, on the frontier" in said
    assert "sweep far: margin 2 at KL 0.5, on the frontier" in said
    assert said.split("sweep beaten")[1].split(";")[0] == ": margin 0.01 at KL 0.25"
    assert violations(page) == []


def test_a_sweep_of_the_service_is_compared_and_its_report_saved(
    service: Running, client: OpenAI, key: str, visitor: Visitor
) -> None:
    body = {"model": BASE_MODEL, "training_file": upload(client), "method": method()}
    with service.http(key) as http:
        sweep = http.post("/v1/fine_tuning/sweeps", json=body | {"sweep": {"beta": [0.1, 0.3]}}).json()
    first, second = (point["job"] for point in sweep["points"])
    page = visitor.signed_in(key, f"#/jobs/{first}")
    page.get_by_role("link", name=sweep["id"]).click()
    differing = page.get_by_role("table", name="Settings of the jobs that differ").get_by_role("row")
    expect(differing.filter(has_text="beta").last).to_contain_text("0.3")
    save = page.get_by_role("button", name="Download the report of the sweep")
    save.click()
    expect(page.get_by_text("has no report yet: none of its jobs has reported a metric")).to_be_visible()
    report(service, second, 16, {"valid_rewards_margins": 2.0})
    with page.expect_download() as download:
        save.click()
    assert download.value.suggested_filename == f"{sweep['id']}.html"
    assert second in Path(download.value.path()).read_text(encoding="utf-8")
    assert violations(page) == []


def test_files_are_uploaded_and_deleted(client: OpenAI, key: str, visitor: Visitor) -> None:
    page = visitor.signed_in(key, "#/files")
    expect(page.get_by_text("No file yet.")).to_be_visible()
    page.get_by_label("Upload").set_input_files(
        {"name": "<img src=x onerror=alert(1)>.jsonl", "mimeType": "a/b", "buffer": b"{}"}
    )  # type: ignore[arg-type]
    row = page.get_by_role("row").last
    expect(row).to_contain_text("img src=x")
    with page.expect_download() as download:
        row.get_by_role("button", name="Download").click()
    assert Path(download.value.path()).read_bytes() == b"{}"
    assert violations(page) == []
    row.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No file yet.")).to_be_visible()
    assert client.files.list().data == []


def test_models_are_found_and_deleted(service: Running, client: OpenAI, key: str, visitor: Visitor) -> None:
    tuned = finish(service, run(service, client, steps=1))
    page = visitor.signed_in(key, "#/models")
    expect(page.get_by_role("row")).to_have_count(3)
    page.get_by_label("Find").fill("ft:")
    expect(page.get_by_role("row")).to_have_count(2)
    assert violations(page) == []
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("row")).to_have_count(1)
    assert tuned not in {model.id for model in client.models.list()}


def test_an_admin_makes_a_project_with_a_key_and_a_limit(service: Running, visitor: Visitor) -> None:
    admin = service.new_key("admins-of-the-page", "admin")
    page = visitor.signed_in(admin, "#/projects")
    page.get_by_label("Name of a new project").fill("made-by-clicks")
    page.get_by_role("button", name="Create the project").click()
    page.get_by_role("link", name="made-by-clicks").click()
    page.get_by_text("Change the limits").click()
    page.get_by_label("jobs queued", exact=True).fill("3")
    page.get_by_role("button", name="Save the limits").click()
    expect(page.get_by_role("row", name="jobs queued")).to_contain_text("3")
    page.get_by_label("Name", exact=True).fill("ci")
    page.get_by_role("checkbox", name="inference").uncheck()
    page.get_by_role("button", name="Create the key").click()
    token = page.get_by_label("The new key, shown this once").inner_text()
    assert violations(page) == []
    with service.http(token) as http:
        known = http.get("/v1/key").json()
    assert (known["project"]["name"], known["scopes"], known["limits"]["jobs_queued"]) == (
        "made-by-clicks",
        ["read", "train"],
        3,
    )
    page.get_by_role("row", name="ci").get_by_role("button", name="Revoke").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(page.get_by_role("row", name="ci")).to_have_count(0)
    with service.http(token) as http:
        assert http.get("/v1/key").status_code == 401


def test_an_admin_sees_the_engines(service: Running, visitor: Visitor) -> None:
    page = visitor.signed_in(service.new_key("admins-of-the-page", "admin"), "#/engines")
    expect(page.get_by_role("row", name="tiny-llama ready 1")).to_be_visible()
    expect(page.get_by_role("row", name="too-big failed 0")).to_contain_text("no room for it")
    assert violations(page) == []


def test_whoever_may_only_ask_models_is_offered_only_that(
    service: Running, project: str, visitor: Visitor
) -> None:
    page = visitor.signed_in(service.new_key(project, "inference"))
    expect(page.get_by_role("heading", level=1, name="Playground")).to_be_visible()
    expect(page.get_by_role("navigation", name="Pages").get_by_role("link")).to_have_text(
        ["Playground", "Models", "Project", "API"]
    )
    page.get_by_role("link", name="Project").click()
    expect(page.get_by_role("table", name="Limits and usage")).to_contain_text("64.0 GiB")
    assert violations(page) == []


def test_no_place_is_wider_than_a_narrow_screen(service: Running, client: OpenAI, visitor: Visitor) -> None:
    key = service.new_key("narrow", "read", "train", "inference", "admin")
    with service.client(key) as mine:
        jobs = ",".join(run(service, mine, steps=15) for _ in range(2))
    page = visitor.signed_in(key)
    page.set_viewport_size(NARROW)  # type: ignore[arg-type]
    for place in (f"compare?jobs={jobs}", "new", "playground", "files", "models", "project", "projects"):
        page.goto(f"{service.url}/#/{place}")
        expect(page.get_by_role("heading", level=1)).to_be_visible()
        page.wait_for_timeout(600)
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"], place


def test_the_description_works_without_another_host(visitor: Visitor) -> None:
    asked: list[str] = []
    page = visitor.context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{visitor.url}/docs")
    expect(page.get_by_text("/v1/fine_tuning/jobs", exact=True).first).to_be_visible()
    assert [url for url in asked if not url.startswith((visitor.url, "data:"))] == []
