"""A stranger's way through the page, by clicks alone, against the real service, vLLM and llama.cpp.

After a first job by the official client: a second one by clicks, watched, compared with the first, chatted with, its
tokens coloured, exported to GGUF and answered by llama.cpp. Prints the time of each step.

    python -m pytest -m slow tests/e2e/test_stranger.py --stranger-model MODEL_FOLDER --stranger-pictures FOLDER

Without a model it is the tests' tiny one, which learns nothing; a real one trains on the demo's rows. On a slow
machine, `--stranger-steps 8` shortens both jobs.
"""

import json
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import PeftModel
from playwright.sync_api import Page, Request, expect
from transformers import AutoModelForCausalLM

from alignkit.export.gguf.checking import llama
from tests.e2e.service import Service
from tests.server.page.browser import FIRST_ROWS, Visitor, chromium, needs_chromium, violations
from tests.tree import ROOT

pytestmark = [needs_chromium, pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

PATIENCE = 1_800_000
"""Milliseconds for training, an engine's start or an export, on a machine that others use too."""
TINY = {"learning_rate_multiplier": 50, "batch_size": 4, "max_steps": 6, "eval_interval": 3}
REAL = {
    "divergence": "js_divergence",
    "sft_weight": 1.0,
    "learning_rate_multiplier": 1.0,
    "batch_size": 4,
    "max_steps": 40,
    "eval_interval": 20,
    "max_length": 256,
}
"""The demo's."""
LONGEST = 24
"""Tokens of a last answer."""
ALIKE = 8
"""Characters in which llama.cpp's answer and vLLM's must agree: weights in 16 bits may part them later."""


@dataclass
class Journey:
    """The steps as they are made: their times, and a picture after each."""

    page: Page
    folder: Path | None
    seconds: dict[str, float] = field(default_factory=dict)
    answers: tuple[str, str] = ("", "")
    """llama.cpp's last answer, and the service's."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time one step; afterwards take a picture, and let axe look."""
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
        found = violations(self.page)
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = f"{len(self.seconds):02}-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.png"
            self.page.wait_for_timeout(500)  # curves have their size
            self.page.screenshot(path=self.folder / file, animations="disabled", full_page=True)
        assert found == [], name

    def table(self) -> str:
        """The time of each step."""
        rows = [*self.seconds.items(), ("all together", sum(self.seconds.values()))]
        return "\n".join(f"{seconds:8.1f} s  {name}" for name, seconds in rows)


@dataclass
class Scored:
    """What the page sent to be scored: token ids by model, the prompt's and the answer's."""

    ids: dict[str, list[list[int]]] = field(default_factory=dict)

    def listen(self, request: Request) -> None:
        """Note a request for log-probs."""
        if request.url.endswith("/v1/completions"):
            body = json.loads(request.post_data or "{}")
            self.ids.setdefault(body["model"], []).append(body["prompt"])


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Path | None:
    """The folder of the model to train, None for the tests' own."""
    given = request.config.getoption("--stranger-model")
    return Path(given).resolve() if given else None


@pytest.fixture
def service(tmp_path: Path, model: Path | None) -> Iterator[Service]:
    """`alignkit serve` with the model and two files to train on."""
    service = Service(
        tmp_path / "home", environment={"ALIGNKIT_REPORT": "on", "ALIGNKIT_ENGINE__MAX_LORA_RANK": "16"}
    )
    service.prepare()
    if model:
        shutil.copytree(model, service.home / "models" / model.name)
        for name in ("train.jsonl", "validation.jsonl"):
            shutil.copy(ROOT / "recipes" / "demo" / name, service.home / name)
    service.start()
    try:
        yield service
    finally:
        children = psutil.Process(service.process.pid).children(recursive=True) if service.process else []
        service.stop()
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, f"left behind: {alive}"


def test_a_second_job_by_clicks_ends_in_llama_cpp(
    service: Service, model: Path | None, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    base, options = (model.name, REAL) if model else ("tiny", TINY)
    if steps := request.config.getoption("--stranger-steps"):
        options = options | {"max_steps": steps, "eval_interval": max(1, steps // 2)}
        options["learning_rate_multiplier"] = 4.0  # or few steps change no answer
    pictures = request.config.getoption("--stranger-pictures")
    with chromium() as browser:
        visitor = Visitor.come(browser, service.url)
        journey = Journey(visitor.tab(), Path(pictures) if pictures else None)
        try:
            travel(journey, service, base, options)
        finally:
            with capsys.disabled():
                print(f"\n{base}, by clicks:\n{journey.table()}\nllama.cpp, vLLM: {journey.answers}")
        visitor.context.close()
    assert visitor.wrong == []


def travel(journey: Journey, service: Service, base: str, options: dict[str, Any]) -> None:
    """All steps, in their order."""
    page = journey.page
    with journey.step("sign in with the first key"):
        page.get_by_label("Key", exact=True).fill((service.home / "first-key").read_text().strip())
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_text("No job yet")).to_be_visible()
    with journey.step("a first job, by the official client"):
        first = first_job(service, base, options)
        expect(page.get_by_role("cell", name=re.compile("^took "))).to_be_visible(timeout=PATIENCE)
    with journey.step("fill in the second job"):
        fill_in(page, base, options)
    with journey.step("the second job, to its end"):
        page.get_by_role("button", name="Start the job").click()
        expect(page.get_by_role("heading", level=1, name="by clicks")).to_be_visible()
        expect(page.locator("main .status")).to_contain_text("succeeded", timeout=PATIENCE)
        expect(page.get_by_role("img", name="Curve of loss over the steps")).to_be_visible()
        expect(page.get_by_role("table", name="Answers of two evaluations")).to_be_visible()
        second = page.get_by_role("link", name=re.compile("^Chat with it")).get_attribute("href") or ""
    with page.expect_download() as report:
        page.get_by_role("button", name="Download the report").click()
    assert "<html" in Path(report.value.path()).read_text(encoding="utf-8")
    with journey.step("compare both"):
        page.get_by_role("link", name="Jobs", exact=True).click()
        expect(page.get_by_role("cell", name=re.compile("^took "))).to_have_count(2)
        for name in ("by the client", "by clicks"):
            page.get_by_label(f"Compare {name}").check()
        page.get_by_role("link", name="Compare 2").click()
        expect(page.locator("tr.differs").filter(has_text="beta")).to_contain_text("0.3")
        expect(page.get_by_role("table", name="Each run's last answers")).to_be_visible()
    page.goto(f"{service.url}/{second}")
    question = "What is 3 plus 3?"
    with journey.step("chat with the model beside its base"):
        ask(page, question)
    with journey.step("colour its tokens by log-ratio"):
        colour(page, service, base)
    tuned = page.get_by_role("combobox", name="Right").input_value()
    assert tuned.startswith(f"ft:{base}:")
    assert tuned != first
    with journey.step("export it to GGUF"):
        page.get_by_role("link", name="Models").click()
        row = page.get_by_role("row").filter(has=page.get_by_label(f"Form of {tuned}", exact=True))
        row.get_by_label(f"Form of {tuned}", exact=True).select_option("gguf")
        with page.expect_download(timeout=PATIENCE) as download:
            row.get_by_role("button", name="Download").click()
        file = unpacked(Path(download.value.path()), service.home / "taken-away")
    with journey.step("llama.cpp answers as the service does"):
        journey.answers = llama_cpp_answer(file, question), service_answer(service, tuned, question)
        assert journey.answers[0]
        found, expected = (
            answer.replace("\ufffd", "") for answer in journey.answers
        )  # vLLM holds back parts of characters
        assert found[:ALIKE] == expected[:ALIKE]


def first_job(service: Service, base: str, options: dict[str, Any]) -> str:
    """Let the official client make a job, and wait for its model's name."""
    client = service.client
    files = [
        client.files.create(file=service.home / name, purpose="fine-tune").id
        for name in ("train.jsonl", "validation.jsonl")
    ]
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=files[0],
        validation_file=files[1],
        method={"type": "f_dpo", "f_dpo": {"hyperparameters": options}},  # type: ignore[typeddict-item]
        metadata={"name": "by the client"},
        seed=7,
    )
    while (found := client.fine_tuning.jobs.retrieve(job.id)).status not in {
        "succeeded",
        "failed",
        "cancelled",
    }:
        time.sleep(0.5)
    assert found.status == "succeeded", found.error
    return str(found.fine_tuned_model)


def fill_in(page: Page, base: str, options: dict[str, Any]) -> None:
    """The form of a new job, until the page has shown its rows and what it takes."""
    page.get_by_role("link", name="New job").first.click()
    page.get_by_label("Training file", exact=True).select_option(label=labelled(page, "train.jsonl"))
    page.get_by_label("Validation file", exact=True).select_option(label=labelled(page, "validation.jsonl"))
    page.get_by_label("Model", exact=True).select_option(base)
    page.get_by_label("Method", exact=True).select_option("f_dpo")
    page.get_by_label("Name", exact=True).fill("by clicks")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_text("Options of every method").click()
    for name, value in (options | {"beta": 0.3}).items():
        option = page.get_by_label(name, exact=True)
        if option.evaluate("(one) => one.tagName") == "SELECT":
            option.select_option(str(value))
        else:
            option.fill(str(value))
    row = page.get_by_role("article", name="Row 1", exact=True)
    expect(row).to_be_visible(timeout=FIRST_ROWS)
    expect(row.locator("mark").first).to_be_visible()
    expect(page.get_by_role("region", name="What it takes")).to_contain_text(
        "Peak memory", timeout=FIRST_ROWS
    )
    expect(page.get_by_role("alert")).to_have_count(0)


def labelled(page: Page, name: str) -> str:
    """The label of a file in the list of training files, once it is there."""
    option = page.get_by_label("Training file", exact=True).get_by_role("option", name=re.compile(f"^{name}"))
    option.wait_for(state="attached")
    return option.inner_text()


def ask(page: Page, question: str) -> None:
    """Ask both models, and wait for their answers."""
    page.get_by_text("System prompt, temperature, saved prompts").click()
    page.get_by_label("Temperature").fill("0")
    page.get_by_label("Message").fill(question)
    page.get_by_role("button", name="Ask both").click()
    expect(page.get_by_role("button", name="Right is better")).to_be_enabled(timeout=PATIENCE)
    texts = [page.get_by_label(f"Conversation, {side}").inner_text() for side in ("left", "right")]
    assert texts[0] != texts[1]


def colour(page: Page, service: Service, base: str) -> None:
    """Colour the answers; what the page says of each token is what transformers says of it."""
    scored = Scored()
    page.on("request", scored.listen)
    page.get_by_label("Colour tokens by log-ratio").check()
    rows = []
    for side in ("left", "right"):
        chat = page.get_by_label(f"Conversation, {side}")
        total, refusal = (
            chat.get_by_text(re.compile(r"log-ratio .* over \d+ tokens?")),
            chat.get_by_role("alert"),
        )
        expect(total.or_(refusal)).to_be_visible(timeout=PATIENCE)
        assert refusal.all_inner_texts() == []
        total.click()
        cells = "(rows) => rows.map((row) => [...row.querySelectorAll('td')].map((cell) => Number(cell.textContent)))"
        rows.append(chat.locator("table tbody tr").evaluate_all(cells))
        assert chat.locator(".tokens span").count() == len(rows[-1])
        colours = set(chat.locator(".tokens span").evaluate_all("(all) => all.map((one) => one.className)"))
        assert colours & {f"{way}-{size}" for way in ("more", "less") for size in (1, 2, 3)}
    (tuned,) = set(scored.ids) - {base}
    assert sorted(scored.ids[tuned]) == sorted(scored.ids[base])
    models = {base: AutoModelForCausalLM.from_pretrained(service.home / "models" / base, dtype=torch.float32)}
    found = {name: sorted_answers(scored.ids[base], models[base]) for name in models}
    adapter = service.home / "jobs" / job_of(service, tuned) / "adapter"
    models[tuned] = PeftModel.from_pretrained(models[base], adapter)
    found[tuned] = sorted_answers(scored.ids[base], models[tuned])
    for policy, reference in zip(found[tuned], found[base], strict=True):
        shown = next(one for one in rows if agree(one, policy, reference))
        rows.remove(shown)
    assert rows == []


def sorted_answers(conversations: list[list[int]], model: Any) -> list[list[float]]:
    """The log-prob of every token of each conversation but its first, in nats."""
    found = []
    for ids in conversations:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=tokens).logits[0, :-1].float()
        found.append(torch.log_softmax(logits, dim=-1).gather(1, tokens[0, 1:, None])[:, 0].tolist())
    return found


def agree(shown: list[list[float]], policy: list[float], reference: list[float]) -> bool:
    """Whether a table of (policy, reference, ratio) holds the log-probs of a conversation's last tokens."""
    expected = list(zip(policy, reference, strict=True))[-len(shown) :]
    gaps = [
        abs(one - other)
        for (left, right), row in zip(expected, shown, strict=True)
        for one, other in ((left, row[0]), (right, row[1]), (left - right, row[2]))
    ]
    return len(gaps) > 0 and sum(gaps) / len(gaps) < 0.05  # vLLM may compute in bfloat16


def job_of(service: Service, tuned: str) -> str:
    """The id of the job that made a model."""
    return next(job.id for job in service.client.fine_tuning.jobs.list() if job.fine_tuned_model == tuned)


def unpacked(archive: Path, folder: Path) -> Path:
    """The GGUF file of an archive."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return next(folder.rglob("*.gguf"))


def llama_cpp_answer(file: Path, question: str) -> str:
    """llama.cpp's greedy answer by the chat template in the file."""
    messages = [{"role": "user", "content": question}]
    with llama(file) as engine:
        found = engine._ask("/v1/chat/completions", messages=messages, temperature=0.0, max_tokens=LONGEST)
    return str(found["choices"][0]["message"]["content"]).strip()


def service_answer(service: Service, model: str, question: str) -> str:
    """The service's greedy answer."""
    found = service.client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=LONGEST,
    )
    return (found.choices[0].message.content or "").strip()
