import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from alignkit_server.catalog.model_catalog import stops_of, template_of
from alignkit_server.engines.adapters import publish, unpublish
from alignkit_server.engines.errors import AdapterError
from alignkit_server.engines.manager import EngineManager
from alignkit_server.settings import Settings
from tests.server.engines.support import FakeEngines, make_settings

NAME = "ft:tiny:default:demo:a1b2c3d4"
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "home", "tiny")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


def make_adapter(folder: Path, *, rank: int = 4, extra: str | None = None, **config: Any) -> Path:
    """A peft adapter's files, and some that must not be published."""
    folder.mkdir(exist_ok=True)
    defaults = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    path = {"base_model_name_or_path": "/srv/home/models/tiny"}
    (folder / "adapter_config.json").write_text(json.dumps(defaults | path | config))
    weights = {
        f"{LAYER}.lora_A.weight": np.ones((rank, 8), np.float32),
        f"{LAYER}.lora_B.weight": np.ones((8, rank), np.float32),
    }
    if extra:
        weights[extra] = np.ones((2, 2), np.float32)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "optimizer.pt").write_bytes(b"pickle")
    return folder


def published(settings: Settings) -> list[str]:
    return sorted(path.name for path in (settings.adapters_dir / "tiny").iterdir())


def test_publish_puts_what_the_resolver_needs_under_the_models_name(
    settings: Settings, adapter: Path
) -> None:
    target = publish(settings, adapter, model_name=NAME, base_model="tiny")
    assert target == settings.adapters_dir / "tiny" / NAME
    assert sorted(path.name for path in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((target / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == ("tiny", 4)
    assert published(settings) == [NAME]  # nothing half-made beside it


def test_a_template_is_published_beside_the_adapter(settings: Settings, adapter: Path) -> None:
    target = publish(
        settings, adapter, model_name=NAME, base_model="tiny", chat_template="{{ messages }}", ends=[7]
    )
    assert template_of(str(target)) == "{{ messages }}"
    assert stops_of(str(target)) == (7,)


def test_publishing_again_is_harmless_but_a_name_is_never_reused(settings: Settings, adapter: Path) -> None:
    first = publish(settings, adapter, model_name=NAME, base_model="tiny")
    assert publish(settings, adapter, model_name=NAME, base_model="tiny") == first
    make_adapter(adapter, rank=2)
    with pytest.raises(AdapterError, match="is taken by another adapter"):
        publish(settings, adapter, model_name=NAME, base_model="tiny")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "only LoRA adapters.*'IA3'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "'pissa' changes the base weights"),
        ({"trainable_token_indices": [1]}, "token embeddings"),
        ({"rank": 65}, r"rank is 65 \(.*lora_A.weight\), the limit is 64"),
        (
            {"extra": "base_model.model.lm_head.lora_A.weight"},
            "heads and embeddings, found base_model.model.lm_head",
        ),
        ({"extra": "base_model.model.model.embed_tokens.lora_embedding_A"}, "heads and embeddings"),
        ({"extra": f"{LAYER}.lora_magnitude_vector"}, "expected only LoRA weights, found .*magnitude"),
    ],
)
def test_what_vllm_cannot_serve_is_refused(
    settings: Settings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    adapter = make_adapter(tmp_path / "adapter", **change)
    with pytest.raises(AdapterError, match=message):
        publish(settings, adapter, model_name=NAME, base_model="tiny")
    assert not (settings.adapters_dir / "tiny").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("adapter_config.json", None),
        ("adapter_config.json", b"{"),
        ("adapter_config.json", b"[]"),
        ("adapter_model.safetensors", None),
        ("adapter_model.safetensors", b"\x08\0\0\0\0\0\0\0short"),
    ],
)
def test_unreadable_files_are_refused_without_a_path(
    settings: Settings, adapter: Path, file: str, content: bytes | None
) -> None:
    (adapter / file).unlink()
    if content is not None:
        (adapter / file).write_bytes(content)
    with pytest.raises(AdapterError, match=file) as caught:
        publish(settings, adapter, model_name=NAME, base_model="tiny")
    assert str(adapter) not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", ".hidden", "a\\b", "a\nb", "a\0", "x" * 251, "ft:ä"]
)
def test_names_that_are_no_folder_names_are_refused(settings: Settings, adapter: Path, name: str) -> None:
    with pytest.raises(AdapterError, match="expected 1 to 250"):
        publish(settings, adapter, model_name=name, base_model="tiny")
    with pytest.raises(AdapterError, match="expected 1 to 250"):
        unpublish(settings, model_name=name, base_model="tiny")
    with pytest.raises(AdapterError, match="not the name of a base model"):
        publish(settings, adapter, model_name=NAME, base_model="../tiny")


def test_a_full_disk_leaves_nothing(
    settings: Settings, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("alignkit_server.engines.adapters.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        publish(settings, adapter, model_name=NAME, base_model="tiny")
    assert published(settings) == []


def test_unpublish_removes_it_and_tells_the_engine(settings: Settings, adapter: Path, tmp_path: Path) -> None:
    fakes = FakeEngines(tmp_path)
    manager = EngineManager(settings, build_command=fakes)
    publish(settings, adapter, model_name=NAME, base_model="tiny")
    try:
        unpublish(settings, model_name=NAME, base_model="tiny", engine_url=manager.endpoint("tiny"))
    finally:
        manager.shutdown()
    assert published(settings) == []
    assert fakes.notes("unload") == [f"unload {NAME}"]


def test_unpublish_is_harmless_twice_and_without_an_engine(settings: Settings, adapter: Path) -> None:
    publish(settings, adapter, model_name=NAME, base_model="tiny")
    for _ in range(2):
        unpublish(settings, model_name=NAME, base_model="tiny", engine_url="http://127.0.0.1:9")
    assert published(settings) == []
