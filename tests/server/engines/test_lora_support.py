"""Whether vLLM serves adapters of an architecture, by the source of the one that is installed."""

import importlib.util

import pytest

from alignkit_server.engines.lora_support import serves_adapters

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM", "MixtralForCausalLM"]
)
def test_adapters_of_these_are_served(name: str) -> None:
    assert serves_adapters({"architectures": [name]}) is True


def test_gpt2_has_no_adapters_in_vllm() -> None:
    assert serves_adapters({"architectures": ["GPT2LMHeadModel"]}) is False


@pytest.mark.parametrize("config", [{}, {"architectures": []}, {"architectures": ["NobodysForCausalLM"]}])
def test_nothing_is_said_of_what_is_not_known(config: dict[str, list[str]]) -> None:
    assert serves_adapters(config) is None
