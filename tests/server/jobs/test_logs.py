"""The end of a job's training log, over HTTP and as it is read from the disk."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from alignkit_server.jobs import log_tail as module
from alignkit_server.jobs.log_tail import log_tail
from tests.server.support import Running, create_job

SECRET = "wandb-secret-of-the-server"


@pytest.fixture
def http(service: Running, key: str) -> Iterator[httpx.Client]:
    with service.http(key) as http:
        yield http


def write(service: Running, job_id: str, text: str) -> Path:
    log = service.settings.jobs_dir / job_id / "train.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)
    return log


def read(http: httpx.Client, job_id: str, **query: Any) -> Any:
    answer = http.get(f"/v1/fine_tuning/jobs/{job_id}/logs", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_log_is_read_from_its_end(service: Running, client: OpenAI, http: httpx.Client) -> None:
    job = create_job(client)
    empty = {"object": "fine_tuning.job.log", "job_id": job.id, "lines": [], "has_more": False}
    assert read(http, job.id) == empty
    write(service, job.id, "".join(f"line {n}\n" for n in range(300)))
    assert read(http, job.id) == empty | {"lines": [f"line {n}" for n in range(200, 300)], "has_more": True}
    assert read(http, job.id, tail=2)["lines"] == ["line 298", "line 299"]
    whole = read(http, job.id, tail=1000)
    assert (len(whole["lines"]), whole["has_more"]) == (300, False)


def test_bounds_scopes_and_unknown_jobs_are_refused(
    service: Running, client: OpenAI, project: str, http: httpx.Client
) -> None:
    path = f"/v1/fine_tuning/jobs/{create_job(client).id}/logs"
    for tail in (0, 1001, "x"):
        assert http.get(path, params={"tail": tail}).json()["error"]["param"] == "tail"
    assert http.get("/v1/fine_tuning/jobs/ftjob-unknown/logs").status_code == 404
    with service.http(service.new_key(project, "inference")) as other:
        assert other.get(path).json()["error"]["code"] == "missing_scope"


def test_a_log_shows_no_path_and_no_secret_of_the_server(
    service: Running, client: OpenAI, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    job, root = create_job(client), service.settings.root
    write(
        service,
        job.id,
        f"reading {root}/files/file-1\n"
        f'File "/usr/lib/python3/site-packages/x.py", line 3\n'
        f"\x1b[31m{root}/secret-key\x1b[0m\n"
        f"login with {SECRET} at https://me:pass@example.com/x\n"
        f"key sk-{'a' * 40}\n",
    )
    lines = read(http, job.id)["lines"]
    assert lines == [
        "reading …/file-1",
        'File "…/x.py", line 3',
        "/secret-key",
        "login with *** at https://***@example.com/x",
        "key sk-***",
    ]


def test_a_progress_bar_is_one_line_without_control_characters(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(b"10%\r50%\r100%\r\n\x1b]0;title\x07\x1b[1mdone\x1b[0m \x9b\xff\x00\n")
    assert log_tail(log, 9, tmp_path) == (["100%", "done \ufffd\ufffd"], False)


def test_half_a_line_is_left_out_since_it_may_hold_half_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 20)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    log = tmp_path / "train.log"
    log.write_text(f"{SECRET}\nlast\n")
    assert log_tail(log, 9, tmp_path) == (["last"], True)
    log.write_text("x" * 50)
    assert log_tail(log, 9, tmp_path) == ([], True)


def test_what_the_sweeper_cut_off_is_read_too(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.with_name("train.log.1").write_text("lf a line\nolder\n")
    log.write_text("newer\n")
    assert log_tail(log, 9, tmp_path) == (["older", "newer"], True)


def test_a_long_line_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("x" * 5000)
    ((line,), _) = log_tail(log, 1, tmp_path)
    assert (len(line), line[-2:]) == (4000, "x…")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_only_a_plain_file_is_a_log(tmp_path: Path, kind: str) -> None:
    """The run's process writes in the folder: a link there must lead nowhere, and a pipe must hold up nobody."""
    (tmp_path / "secret").write_text("secret")
    log = tmp_path / "train.log"
    {
        "link": lambda: log.symlink_to(tmp_path / "secret"),
        "pipe": lambda: os.mkfifo(log),
        "folder": log.mkdir,
    }[kind]()
    assert log_tail(log, 9, tmp_path) == ([], False)


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/")), max_size=30), st.integers(1, 40)
)
def test_any_text_gives_at_most_that_many_printable_lines(lines: list[str], most: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "train.log"
        log.write_text("\n".join(lines), encoding="utf-8")
        found, _ = log_tail(log, most, Path(folder))
    assert len(found) <= most
    assert all(character.isprintable() or character == "\t" for line in found for character in line)
