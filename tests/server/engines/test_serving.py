"""The engine of merged weights: a command of its own, and how the weights are quantised."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from alignkit_server.engines import command
from alignkit_server.engines.command import EngineCommand, vllm_command
from alignkit_server.engines.serving import quantization_in
from alignkit_server.engines.weights import publish_weights, stored_dtype
from tests.server.engines.support import make_settings
from tests.server.engines.vllm_source import vllm_source

NAME = "ft:tiny:default:mine:a1b2c3d4"


def engine(
    home: Path, monkeypatch: pytest.MonkeyPatch, serving: str, stored: str = "bfloat16", dtype: str = "auto"
) -> EngineCommand:
    """The command, on a GPU, of a model served so."""
    settings = make_settings(home, "tiny")
    monkeypatch.setattr(command, "runs_on_gpu", lambda: True)
    settings.engine.dtype = dtype
    source = home / "merged"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"dtype": stored, "max_position_embeddings": 512}))
    (source / "model.safetensors").write_bytes(b"")
    publish_weights(settings, source, model_name=NAME, serving=serving)
    return vllm_command(settings, NAME, 4711)


def option(built: EngineCommand, name: str) -> str | None:
    return next((value for key, value in pairwise(built.arguments) if key == name), None)


def test_merged_weights_have_an_engine_of_their_own_without_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = engine(tmp_path, monkeypatch, "merged")
    assert option(built, "--served-model-name") == NAME
    assert option(built, "--quantization") is None
    assert "--enable-lora" not in built.arguments
    assert built.rank is None


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        ("bfloat16", "auto", "auto"),
        ("float32", "auto", "bfloat16"),  # vLLM quantises no weights that it computes with in float32
        ("float32", "float16", "float16"),
    ],
)
def test_fp8_is_vllms_online_quantisation_in_16_bits(
    stored: str, asked: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = engine(tmp_path, monkeypatch, "merged_fp8", stored, asked)
    assert option(built, "--quantization") == "fp8_per_channel"
    assert option(built, "--dtype") == expected


def test_the_installed_vllm_quantises_so() -> None:
    assert '"fp8_per_channel": QuantizationConfigArgs(' in vllm_source("config/quantization.py")


def test_weights_without_a_mark_are_served_as_they_are(tmp_path: Path) -> None:
    assert quantization_in(tmp_path) is None
    (tmp_path / "serving.json").write_text("[")
    assert quantization_in(tmp_path) is None


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "torch.float16"}, "float16"),
        ({"text_config": {"dtype": "bfloat16"}}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_the_dtype_of_stored_weights(config: dict[str, object], expected: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert stored_dtype(tmp_path) == expected


def test_weights_without_a_configuration_count_as_the_most_exact(tmp_path: Path) -> None:
    assert stored_dtype(tmp_path) == "float32"
