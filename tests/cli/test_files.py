"""`alignkit files list | get | rm`."""

import errno
import io
from pathlib import Path

import pytest
from openai import OpenAI

from alignkit.cli import service as client_side
from tests.cli.conftest import Run
from tests.server.support import Running, create_job, pairs, upload


def test_files_are_listed_with_sizes_for_people(client: OpenAI, run: Run) -> None:
    small, large = (
        upload(client, b"x", "small.txt", "user_data"),
        upload(client, b"{}\n" * 2**20, "large.jsonl"),
    )
    shown = [line for line in run("files", "list").stdout.splitlines() if "file-" in line]
    assert [line.split("│")[1].strip() for line in shown] == [large, small]
    assert ["3.0 MiB" in shown[0], "1 bytes" in shown[1]] == [True, True]
    (found,) = run("files", "list", "--purpose", "user_data", "--json").json
    assert found == client.files.retrieve(small).to_dict() | {
        name: found[name] for name in found.keys() & {"expires_at", "status_details"}
    }
    assert len(run("files", "list", "--limit", "1", "--json").json) == 1


def test_a_file_is_downloaded_under_its_name(client: OpenAI, run: Run) -> None:
    file_id = upload(client, pairs(), "../../pairs.jsonl")
    done = run("files", "get", file_id)
    assert (done.returncode, done.stdout) == (0, "pairs.jsonl\n"), done.stderr
    assert Path("pairs.jsonl").read_bytes() == pairs()
    Path("pairs.jsonl").write_text("mine")
    refused = run("files", "get", file_id)
    assert "pairs.jsonl: expected no file or folder of this name" in refused.stderr
    assert Path("pairs.jsonl").read_text() == "mine"
    assert run("files", "get", file_id, "--force").returncode == 0
    assert Path("pairs.jsonl").read_bytes() == pairs()
    assert run("files", "get", file_id, "--to", "-").stdout == pairs().decode()
    assert run("files", "get", file_id, "--to", "a/new/folder/x").returncode == 0
    assert Path("a/new/folder/x").read_bytes() == pairs()


def test_a_download_on_a_full_disk_leaves_nothing(
    client: OpenAI, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file_id = upload(client, pairs(), "pairs.jsonl")
    monkeypatch.setattr(client_side, "download", full)
    done = run("files", "get", file_id)
    assert done.returncode == 1
    assert "pairs.jsonl: the disk is full, so nothing was kept" in done.stderr
    assert list(Path().iterdir()) == []


def test_files_are_deleted_after_asking(client: OpenAI, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = upload(client, name="first.jsonl"), upload(client, name="second.jsonl")
    assert "give --yes" in run("files", "rm", first).stderr
    assert "No such file: 'file-unknown'" in run("files", "rm", first, "file-unknown", "--yes").stderr
    assert len(client.files.list().data) == 2, "all of them are there before one is deleted"

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("y\nn\n"))
    done = run("files", "rm", first, second)
    assert done.returncode == 1
    assert "Delete first.jsonl" in done.stderr
    assert [file.id for file in client.files.list().data] == [second]
    assert run("files", "rm", second, "--yes").stdout == f"{second} is deleted\n"


def test_a_file_in_use_is_not_deleted(service: Running, client: OpenAI, run: Run) -> None:
    file_id = upload(client)
    create_job(client, training_file=file_id)
    done = run("files", "rm", file_id, "--yes")
    assert done.returncode == 1
    assert "ftjob-" in done.stderr
