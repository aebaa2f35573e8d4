"""The pages' `alignkit` commands, run as they are written: those that neither train nor load a model."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from alignkit.cli import job_watch, output
from tests import tiny
from tests.cli.conftest import Run
from tests.docs.blocks import BLOCKS, commands_of
from tests.evaluate.endpoint import chat, endpoint
from tests.server.page.runs import finish
from tests.server.page.runs import run as job_that_trains
from tests.server.support import Running, pairs
from tests.tree import ROOT

ELSEWHERE = {
    "eval": "tests/e2e/test_tutorials.py; judges tests/report/test_real_run.py, --harness tests/e2e/test_harness.py",
    "export": "tests/e2e/test_tutorials.py, to the hub tests/export/test_hub.py",
    "interpolate": "tests/e2e/test_tutorials.py",
    "report": "tests/e2e/test_tutorials.py",
    "serve": "tests/e2e/service.py",
    "sweep": "tests/sweep/test_real.py",
    "train": "tests/e2e/test_tutorials.py, with several processes tests/distributed/",
    "models export": "tests/server/models/test_exports.py",
    "models push": "tests/server/models/test_exports.py",
}
"""Commands that this file does not run -> where they run."""
MODELS = ("smollm2-135m-instruct", "smollm2", "qwen3-8b", "my-model")
"""The imported models that the pages name, here tiny ones."""


def written(page: str) -> list[list[str]]:
    """The arguments of a page's commands that are run here, in order."""
    return [
        command[1:]
        for block in BLOCKS
        if block.page == page and block.language == "sh" and page != "docs/api.md"
        for command in commands_of(block)
        if command[0] == "alignkit" and not {command[1], " ".join(command[1:3])} & ELSEWHERE.keys()
    ]


SLOW = {"README.md", "docs/scale.md", "docs/tutorials/gpu-server.md"}
"""Pages that estimate on GPUs, under each kind of sharding."""
PAGES = [
    pytest.param(page, marks=[pytest.mark.slow] if page in SLOW else [])
    for page in dict.fromkeys(block.page for block in BLOCKS)
    if written(page)
]


@pytest.fixture(scope="module")
def models(service: Running) -> Iterator[None]:
    """Tiny models under the names of the pages; others count the service's models, so they go again."""
    folder = service.settings.models_dir
    before = set(folder.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "MAX_POSITIONS", 4096)
        for name in MODELS:
            tiny.build_tiny_model(folder / name)
    yield
    for made in set(folder.iterdir()) - before:
        shutil.rmtree(made)


@pytest.fixture
def names(
    service: Running,
    client: OpenAI,
    run: Run,
    models: None,
    project: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[dict[str, str]]:
    """What a reader would have: files in this folder, and what the pages' stand-ins stand for."""
    for name in ("pairs.jsonl", "bad.jsonl"):
        Path(name).write_bytes(pairs(20))
    Path("prompts.jsonl").write_text('{"prompt": "Why is the sky blue?"}\n{"prompt": "Name a colour."}\n')
    Path("my_rules.py").write_text("def shorter(messages, answer):\n    return -len(answer)\n")
    Path("first.yaml").write_text(
        next(b.text for b in BLOCKS if b.page.endswith("first-dpo.md") and b.language == "yaml")
    )
    Path("recipes").symlink_to(ROOT / "recipes")
    watched = job_watch.watch

    def finished_first(job_id: str) -> None:
        service.ledger.transition(job_id, "running", only_from=("queued",))
        finish(service, job_id)
        watched(job_id)

    monkeypatch.setattr(job_watch, "watch", finished_first)
    monkeypatch.setattr(output, "ask", lambda *_, **__: None)  # a reader who says yes
    job_id = job_that_trains(service, client, steps=0)
    tuned = finish(service, job_id)
    report = service.settings.jobs_dir / job_id / "report.html"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text("<p>")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with endpoint(lambda body: chat(*("sky" * (at + 1) for at in range(body["n"])))) as model:
        yield {
            "ft:…": tuned,
            "ftjob-123": job_id,
            "team": f"{project}-team",
            "http://localhost:8000/v1": model.url,
        }


def test_what_runs_elsewhere_has_its_place() -> None:
    places = [place for text in ELSEWHERE.values() for place in re.findall(r"tests/[\w/]+(?:\.py|/)", text)]
    assert len(places) > len(ELSEWHERE)
    assert [place for place in places if not (ROOT / place).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_s_commands_do_what_it_says(
    service: Running, run: Run, names: dict[str, str], key: str, page: str
) -> None:
    first_key = (service.settings.root / "first-key").read_text().strip()
    for words in written(page):
        arguments = [names.get(word, word) for word in words]
        if words[:2] == ["data", "draw"]:
            Path("pairs.jsonl").unlink()  # which it writes
        done = run(*arguments, key=first_key if words[0] in {"projects", "keys"} else key)
        assert done.returncode == 0, (shlex.join(words), done.stderr)
        assert done.stdout.strip(), shlex.join(words)
        if words[:2] == ["keys", "create"]:
            names["key_…"] = done.stderr.split(":")[0]
