"""The real thing: vLLM, a tiny llama and LoRA adapters, against transformers and peft."""

import importlib.util
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.export import ExportOptions, adapter_source, export
from alignkit_server.engines.adapters import publish, unpublish
from alignkit_server.engines.canary import check
from alignkit_server.engines.command import SLEEPING_SERVER, VLLM_SERVER, EngineCommand, vllm_command
from alignkit_server.engines.errors import CanaryError
from alignkit_server.engines.manager import EngineManager
from alignkit_server.engines.ranks import adapter_rank
from alignkit_server.engines.weights import publish_weights
from alignkit_server.settings import Settings
from tests.server.engines.support import gone
from tests.tiny import build_tiny_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

GOOD = "ft:tiny:default:demo:a1b2c3d4"
MISNAMED = "ft:tiny:default:demo:wrong123"
NEW_TOKENS = 12


@dataclass
class Rig:
    """A running engine and the same model in transformers."""

    settings: Settings
    manager: EngineManager
    canary: dict[str, Any]
    prompt: list[int]
    expected: dict[str, list[int]]
    """Model name to the greedy continuation of the prompt, by transformers and peft."""

    @property
    def url(self) -> str:
        """The engine's URL; starts it if a test has stopped it."""
        return self.manager.endpoint("tiny")


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    home = tmp_path_factory.mktemp("home")
    settings = Settings(home=home)
    base_dir = build_tiny_model(settings.models_dir / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(base_dir)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why is the sky blue?"}], add_generation_prompt=True, return_dict=False
    )
    answer = tokenizer("The sky is blue because the air scatters light.")["input_ids"]
    model = make_adapter(base_dir, home / "adapter")
    misname(home / "adapter", home / "misnamed")
    with model.disable_adapter():
        base_logps, base_tokens = logprobs(model, prompt, answer), greedy(model, prompt)
    canary = {
        "prompt_token_ids": prompt,
        "completion_token_ids": answer,
        "base_logprobs": base_logps,
        "adapter_logprobs": logprobs(model, prompt, answer),
        "dtype": "float32",
    }
    expected = {"tiny": base_tokens, GOOD: greedy(model, prompt)}
    manager = EngineManager(settings)
    try:
        # Before any adapter exists: one published while the engine runs must be found.
        started = time.monotonic()
        manager.endpoint("tiny")
        print(f"vLLM was ready after {time.monotonic() - started:.1f} s")
        publish(settings, home / "adapter", model_name=GOOD, base_model="tiny")
        publish(settings, home / "misnamed", model_name=MISNAMED, base_model="tiny")
        yield Rig(settings, manager, canary, prompt, expected)
    finally:
        manager.shutdown()
    assert list(settings.engines_dir.glob("*.json")) == []


def make_adapter(base_dir: Path, target: Path, rank: int = 4) -> PeftModel:
    """A LoRA adapter with weights large enough to be seen."""
    config = LoraConfig(r=rank, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32), config)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(target)
    model.eval()
    return model


def misname(source: Path, target: Path) -> None:
    """The same adapter with module names that no model has."""
    target.mkdir()
    weights = load_file(source / "adapter_model.safetensors")
    renamed = {name.replace("self_attn", "attention").replace("mlp", "ffn"): t for name, t in weights.items()}
    save_file(renamed, target / "adapter_model.safetensors")
    (target / "adapter_config.json").write_text((source / "adapter_config.json").read_text())


@torch.no_grad()
def logprobs(model: PeftModel, prompt: list[int], answer: list[int]) -> list[float]:
    tokens = torch.tensor([prompt + answer])
    logps = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
    picked = logps.gather(-1, tokens[0, 1:, None])[len(prompt) - 1 :, 0]
    return [float(value) for value in picked]


@torch.no_grad()
def greedy(model: PeftModel, prompt: list[int]) -> list[int]:
    tokens = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
    )
    return [int(token) for token in tokens[0, len(prompt) :]]


def complete(rig: Rig, model: str) -> list[int]:
    request = {
        "model": model,
        "prompt": rig.prompt,
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "return_token_ids": True,
    }
    response = httpx.post(f"{rig.url}/v1/completions", json=request, timeout=60)
    assert response.status_code == 200, response.text
    return [int(token) for token in response.json()["choices"][0]["token_ids"]]


def test_the_adapter_answers_as_trained(rig: Rig) -> None:
    report = check(rig.url, base_model="tiny", model_name=GOOD, canary=rig.canary)
    print(report)
    assert report.conclusive
    assert report.adapter.maximum < 1e-3
    assert report.over_base
    assert report.over_base.base.maximum < 1e-3
    assert report.over_base.served_shift.maximum > 0.1


def test_an_adapter_with_wrong_module_names_is_caught(rig: Rig) -> None:
    with pytest.raises(CanaryError) as caught:
        check(rig.url, base_model="tiny", model_name=MISNAMED, canary=rig.canary)
    print(caught.value)


def test_greedy_answers_are_those_of_transformers_and_peft(rig: Rig) -> None:
    assert rig.expected["tiny"] != rig.expected[GOOD]
    for model, tokens in rig.expected.items():
        assert complete(rig, model) == tokens


def test_a_streaming_chat(rig: Rig) -> None:
    request = {
        "model": GOOD,
        "messages": [{"role": "user", "content": "Why is the sky blue?"}],
        "stream": True,
        "max_tokens": 8,
        "logprobs": True,
    }
    with httpx.stream("POST", f"{rig.url}/v1/chat/completions", json=request, timeout=60) as response:
        assert response.status_code == 200, response.read()
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["model"] for chunk in chunks} == {GOOD}
    logps = [
        c["logprobs"]["content"][0]["logprob"] for ch in chunks for c in ch["choices"] if c.get("logprobs")
    ]
    assert logps
    assert all(math.isfinite(value) for value in logps)


def test_an_unpublished_adapter_answers_no_more(rig: Rig, tmp_path: Path) -> None:
    other = "ft:tiny:default:demo:gone1234"
    source = rig.settings.adapters_dir / "tiny" / GOOD
    publish(rig.settings, source, model_name=other, base_model="tiny")
    assert complete(rig, other) == rig.expected[GOOD]
    unpublish(rig.settings, model_name=other, base_model="tiny", engine_url=rig.url)
    response = httpx.post(f"{rig.url}/v1/completions", json={"model": other, "prompt": "x"}, timeout=60)
    assert response.status_code == 404


def test_adapters_beyond_those_kept_in_memory_come_back_when_asked_for(rig: Rig) -> None:
    """Own engine with room for two adapters: each of four is dropped and found again by the resolver."""
    settings = rig.settings.model_copy(deep=True)
    settings.engine.max_loras, settings.engine.max_cpu_loras = 1, 2
    names = [f"ft:tiny:default:many:a1b2c3d{n}" for n in range(4)]
    for name in names:
        publish(settings, settings.home / "adapter", model_name=name, base_model="tiny")
    rig.manager.stop("tiny")
    manager = EngineManager(settings)
    try:
        url = manager.endpoint("tiny")
        for name in (*names, *names):
            report = check(url, base_model="tiny", model_name=name, canary=rig.canary)
            assert report.conclusive
            assert report.adapter.maximum < 1e-3
    finally:
        manager.shutdown()


def test_a_fully_trained_model_has_an_engine_of_its_own(rig: Rig) -> None:
    name = "ft:tiny:default:full:a1b2c3d4:ckpt-step-2"
    publish_weights(rig.settings, rig.settings.models_dir / "tiny", model_name=name)
    canary = rig.canary | {"adapter_logprobs": rig.canary["base_logprobs"], "base_logprobs": None}
    rig.manager.stop("tiny")
    try:
        report = check(rig.manager.endpoint(name), base_model="tiny", model_name=name, canary=canary)
        assert report.adapter.maximum < 1e-3
    finally:
        rig.manager.stop(name)


def test_an_adapter_of_a_larger_rank_restarts_the_engine(rig: Rig) -> None:
    small = rig.url
    name, source = "ft:tiny:default:large:a1b2c3d4", rig.settings.home / "large"
    model = make_adapter(rig.settings.models_dir / "tiny", source, rank=24)
    prompt, answer = rig.canary["prompt_token_ids"], rig.canary["completion_token_ids"]
    canary = rig.canary | {"adapter_logprobs": logprobs(model, prompt, answer)}
    folder = publish(rig.settings, source, model_name=name, base_model="tiny")
    with rig.manager.leased("tiny", adapter_rank(str(folder))) as url:
        assert url != small
        report = check(url, base_model="tiny", model_name=name, canary=canary)
    assert report.conclusive
    assert report.adapter.maximum < 1e-3


def test_merged_weights_answer_as_the_adapter_on_an_engine_that_could_sleep(rig: Rig) -> None:
    """On a CPU no engine sleeps, but the routes are there, and none of vLLM's other development routes."""
    name, target = "ft:tiny:default:merged:a1b2c3d4", rig.settings.home / "merged"
    base = rig.settings.models_dir / "tiny"
    export(adapter_source("merged", rig.settings.home / "adapter", base), "merged", target, ExportOptions())
    publish_weights(rig.settings, target, model_name=name, serving="merged")

    def sleepable(*told: Any) -> EngineCommand:
        built = vllm_command(*told)
        parts = [SLEEPING_SERVER if part == VLLM_SERVER else part for part in built.arguments]
        return replace(built, arguments=parts)

    rig.manager.stop("tiny")
    manager = EngineManager(rig.settings, build_command=sleepable)
    try:
        url = manager.endpoint(name)
        report = check(url, base_model=None, model_name=name, canary=rig.canary)
        assert report.conclusive
        assert report.adapter.maximum < 1e-3
        assert httpx.get(f"{url}/is_sleeping").json() == {"is_sleeping": False}
        assert httpx.post(f"{url}/collective_rpc", json={"method": "x"}).status_code == 404
    finally:
        manager.shutdown()


def test_shutdown_ends_every_process_of_vllm(rig: Rig) -> None:
    """Last: the engine core is a process of its own, and gets a title that hides its command line."""
    assert rig.url
    process = rig.manager._engines["tiny"]._process
    assert process is not None
    members = process._members()
    assert len(members) >= 2
    rig.manager.shutdown()
    assert all(gone(member.pid) for member in members)
