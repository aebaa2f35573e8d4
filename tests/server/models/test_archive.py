"""A model's adapter as a tar archive."""

import io
import tarfile
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from alignkit_server.models.archive import Archive
from tests.server.support import BASE_MODEL, Running, create_job


def test_an_adapter_is_downloaded_whole(service: Running, client: OpenAI, key: str, tmp_path: Path) -> None:
    weights = bytes(range(256)) * 5000
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    job = create_job(client)
    name = f"ft:{BASE_MODEL}:mine:demo:{job.id[-8:]}"
    service.ledger.add_model(job.id, name=name, base_model=BASE_MODEL, kind="adapter", path=str(tmp_path))
    with service.http(key) as http:
        path = f"/v1/models/{name}/archive"
        assert http.get(path).json()["error"]["code"] == "model_not_ready"
        service.ledger.transition(job.id, "succeeded", only_from=("queued",))
        answer = http.get(path)
        assert answer.headers["content-type"] == "application/x-tar"
        assert int(answer.headers["content-length"]) == len(answer.content)
        check_other_answers(http)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        root = name.replace(":", "_")
        names = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
        assert archive.getnames() == [f"{root}/{name}" for name in names]
        member = archive.extractfile(f"{root}/adapter_model.safetensors")
        assert member is not None
        assert member.read() == weights
    with service.http(service.new_key("stranger")) as stranger:
        assert stranger.get(path).status_code == 404


def check_other_answers(http: httpx.Client) -> None:
    assert http.get(f"/v1/models/{BASE_MODEL}/archive?form=exe").status_code == 400
    assert http.get(f"/v1/models/{BASE_MODEL}/archive").status_code == 403
    assert http.get("/v1/models/none/archive").status_code == 404


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 2**20 + 1])
def test_any_size_is_padded_right(tmp_path: Path, size: int) -> None:
    (tmp_path / "a").write_bytes(b"x" * size)
    archive = Archive({"a": tmp_path / "a"}, "root")
    content = b"".join(archive.chunks())
    assert len(content) == archive.size
    with tarfile.open(fileobj=io.BytesIO(content)) as read:
        assert read.getmember("root/a").size == size
