"""Context, sequences, adapters and memory of an engine, by settings, model and device."""

from itertools import pairwise
from pathlib import Path

import pytest

from alignkit_server.engine_settings import EngineSettings
from alignkit_server.engines import command
from alignkit_server.engines.command import vllm_command
from alignkit_server.engines.sizes import (
    adapters_at_once,
    context_argument,
    memory_share,
    sequences_at_once,
)
from tests.server.engines.support import make_settings


@pytest.mark.parametrize(
    ("asked", "positions", "expected"),
    [
        (None, 131_072, "auto"),
        (None, None, "2048"),  # vLLM would ask for a length
        (4096, 131_072, "4096"),
        (4096, 512, "512"),
        (4096, None, "4096"),
    ],
)
def test_the_context_is_the_models_unless_it_is_limited(
    asked: int | None, positions: int | None, expected: str
) -> None:
    assert context_argument(EngineSettings(max_model_len=asked), positions) == expected


def test_a_gpu_decodes_more_at_once() -> None:
    assert [sequences_at_once(EngineSettings(), gpu=gpu) for gpu in (False, True)] == [20, 256]
    assert [adapters_at_once(EngineSettings(), gpu=gpu) for gpu in (False, True)] == [4, 8]
    given = EngineSettings(max_num_seqs=7, max_loras=3)
    assert sequences_at_once(given, gpu=True) == 7
    assert adapters_at_once(given, gpu=True) == 3


def test_engines_that_share_a_gpu_fit_on_it_together() -> None:
    own = EngineSettings(gpus=[0], max_engines=3)
    assert 3 * memory_share(own) <= 0.9
    assert memory_share(EngineSettings(max_engines=1)) == 0.6  # training needs the rest
    assert memory_share(EngineSettings(gpu_memory_utilization=0.8)) == 0.8


def test_a_models_own_options_are_those_of_its_engines_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path / "home", "tiny")
    monkeypatch.setattr(command, "runs_on_gpu", lambda: False)
    own = {"max_model_len": 64, "dtype": "bfloat16", "extra_args": ["--seed", "3"]}
    settings.engine = EngineSettings.model_validate({"max_num_seqs": 5, "models": {"tiny": own}})
    line = " ".join(vllm_command(settings, "tiny", 4711).arguments)
    for part in ("--max-model-len 64", "--dtype bfloat16", "--seed 3", "--max-num-seqs 5"):
        assert part in line
    assert settings.engine.of("ft:tiny:default:mine:abc:ckpt-step-4").max_model_len == 64
    assert settings.engine.of("other").max_model_len is None


def test_an_engine_without_a_gpu_starts_no_worker_unless_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path / "home", "tiny")
    backends = {}
    for gpu in (False, True):
        monkeypatch.setattr(command, "runs_on_gpu", lambda gpu=gpu: gpu)
        arguments = vllm_command(settings, "tiny", 4711).arguments
        backends[gpu] = [b for a, b in pairwise(arguments) if a == "--distributed-executor-backend"]
    assert backends == {False: [command.IN_ENGINE], True: []}
    monkeypatch.setattr(command, "runs_on_gpu", lambda: False)
    settings.engine = EngineSettings(extra_args=["--distributed-executor-backend", "mp"])
    assert vllm_command(settings, "tiny", 4711).arguments[-1] == "mp"


def test_an_unknown_option_of_a_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"models\.tiny\.max_len"):
        EngineSettings.model_validate({"models": {"tiny": {"max_len": 64}}})
