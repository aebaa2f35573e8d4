"""Fully trained models: what is served of them, where, and by which command."""

import json
from pathlib import Path

import pytest

from alignkit_server.engines.command import vllm_command
from alignkit_server.engines.errors import AdapterError
from alignkit_server.engines.weights import publish_weights, unpublish_weights, weights_folder
from alignkit_server.settings import Settings
from tests.server.engines.support import make_settings

NAME = "ft:tiny:default:demo:a1b2c3d4:ckpt-step-2"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "home", "tiny")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 256}))
    for name in (
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "optimizer.pt",
        "trainer_state.json",
    ):
        (folder / name).write_text("{}")
    return folder


def test_what_a_server_reads_is_published_and_no_more(settings: Settings, checkpoint: Path) -> None:
    leftover = settings.weights_dir / f".publishing-{weights_folder(settings, NAME).name}"
    leftover.mkdir(parents=True)
    (leftover / "half").touch()
    published = publish_weights(settings, checkpoint, model_name=NAME)
    assert publish_weights(settings, checkpoint, model_name=NAME) == published
    names = {path.name for path in published.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert [path.name for path in settings.weights_dir.iterdir()] == [published.name]
    unpublish_weights(settings, model_name=NAME)
    unpublish_weights(settings, model_name=NAME)
    assert not published.exists()
    assert (checkpoint / "model.safetensors").exists()


def test_an_engine_of_another_user_may_read_what_safetensors_wrote_for_its_owner(
    settings: Settings, checkpoint: Path
) -> None:
    (checkpoint / "model.safetensors").chmod(0o600)
    published = publish_weights(settings, checkpoint, model_name=NAME)
    modes = {path.name: path.stat().st_mode for path in published.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
    assert modes["config.json"] & 0o044


def test_a_folder_without_weights_is_refused(settings: Settings, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"expected config.json and \*.safetensors"):
        publish_weights(settings, checkpoint, model_name=NAME)


def test_its_engine_has_its_name_and_no_adapters(settings: Settings, checkpoint: Path) -> None:
    published = publish_weights(settings, checkpoint, model_name=NAME)
    command = vllm_command(settings, NAME, 1234)
    arguments = dict(zip(command.arguments, command.arguments[1:], strict=False))
    assert (arguments["--model"], command.cwd) == (published.name, settings.weights_dir)
    assert arguments["--served-model-name"] == NAME
    assert arguments["--max-model-len"] == "auto"
    assert "--enable-lora" not in command.arguments
    assert "VLLM_PLUGINS" not in command.environment
