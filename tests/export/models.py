"""Tiny random models of the families that GGUF holds, with a byte-level or a SentencePiece-like tokenizer."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from tests.tiny import build_tiny_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
}
GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 8}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, Any] = {
    "llama": lambda ids: LlamaConfig(**SIZES, **ids, num_hidden_layers=2, rope_parameters=LLAMA3_ROPE),
    "mistral": lambda ids: MistralConfig(
        **SIZES, **ids, num_hidden_layers=2, head_dim=32, sliding_window=None
    ),
    "qwen2": lambda ids: Qwen2Config(**SIZES, **ids, num_hidden_layers=2, tie_word_embeddings=True),
    "qwen3": lambda ids: Qwen3Config(**SIZES, **ids, num_hidden_layers=2, head_dim=128),
    "gemma2": lambda ids: Gemma2Config(**SIZES, **GEMMA, **ids, num_hidden_layers=4),
    "gemma3_text": lambda ids: Gemma3TextConfig(**SIZES, **GEMMA, **ids, num_hidden_layers=7),
}
SENTENCEPIECE = {"mistral", "gemma2", "gemma3_text"}
GEMMA_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
    "+ (first if loop.first else '') + m['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


def build(folder: Path, kind: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """Save a tiny random model of the family `kind`, whose weights differ from each other, and its tokenizer."""
    folder.mkdir(parents=True)
    tokenizer = (build_sentencepiece if kind in SENTENCEPIECE else build_tiny_tokenizer)(folder)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = CONFIGS[kind](
        ids | {"vocab_size": len(tokenizer) + 3}
    )  # rows without tokens, as padded models have
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for weight in model.parameters():
            if weight.ndim == 1:  # norms and biases are born equal
                weight.data += 0.3 * torch.randn_like(weight)
    model.to(dtype).save_pretrained(folder)
    return folder


def build_sentencepiece(folder: Path) -> PreTrainedTokenizerFast:
    """Save a tokenizer like those that come from SentencePiece: ▁ for spaces, bytes for unknown characters."""
    words = ["▁The", "▁capital", "▁of", "▁France", "▁is", "▁Paris", "▁river", "▁and", "return", "def"]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    characters = sorted(
        {character for word in words for character in word} | set("▁,.;:()+-abcdefghijklmnopqrstuvwxyz")
    )
    tokens += characters
    merges: list[tuple[str, str]] = []
    for word in words:
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if pair not in merges:
                merges.append(pair)
                tokens.append("".join(pair))
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    raw = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )
    tokenizer.chat_template = GEMMA_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def logprobs(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probs of every token after each of `ids`, [tokens, vocabulary] float32."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    return torch.log_softmax(logits, dim=-1)
