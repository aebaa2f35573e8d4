"""A model small enough for a test, whose memory is yet more than what Python does beside it."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    GptOssConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    OlmoeConfig,
    Qwen3MoeConfig,
)

from tests.tiny import build_tiny_tokenizer

_OF_EXPERTS: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = (
    MixtralConfig(**_OF_EXPERTS, intermediate_size=96, num_local_experts=4),
    Qwen3MoeConfig(**_OF_EXPERTS, intermediate_size=96, moe_intermediate_size=32, num_experts=8, head_dim=16),
    OlmoeConfig(**_OF_EXPERTS, intermediate_size=48, num_experts=8),
    GptOssConfig(**_OF_EXPERTS, intermediate_size=48, num_local_experts=4, head_dim=16),
)
"""Small mixtures of experts."""


def build_small_model(directory: Path, layers: int = 4, hidden: int = 256, vocabulary: int = 16_384) -> Path:
    """Save a random llama (7.5 M parameters unless told otherwise, fp32) and its tokenizer; returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tiny_tokenizer(directory)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory
