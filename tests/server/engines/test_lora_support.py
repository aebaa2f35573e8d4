"""Whether vLLM serves adapters of an architecture, by the source of the one that is installed."""

import ast
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from alignkit_server.engines import lora_support
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


def test_requests_at_once_do_not_parse_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsing, parse = threading.Lock(), ast.parse

    def alone(*arguments: Any, **options: Any) -> Any:
        assert parsing.acquire(blocking=False), "two threads parse"
        try:
            return parse(*arguments, **options)
        finally:
            parsing.release()

    monkeypatch.setattr(lora_support.ast, "parse", alone)
    lora_support._supports.cache_clear()
    lora_support._registry.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        names = ("LlamaForCausalLM", "Qwen3ForCausalLM", "GPT2LMHeadModel", "MistralForCausalLM")
        found = pool.map(lambda name: serves_adapters({"architectures": [name]}), names)
        assert list(found) == [True, True, False, True]
