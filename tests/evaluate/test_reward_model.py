"""A reward model of two layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from alignkit.errors import ModelError
from alignkit.evaluate.reward_model import RewardModel
from tests.tiny import build_tiny_model, build_tiny_tokenizer

SHORT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
LONG = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "It scatters light."},
]


def build(folder: Path, labels: int = 1) -> Path:
    tokenizer = build_tiny_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("reward"))


def logit(folder: Path, conversation: Any) -> float:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(tokenizer.apply_chat_template(conversation, tokenize=False), add_special_tokens=False)
    model = LlamaForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids["input_ids"]])).logits[0, 0])


def test_the_reward_is_the_logit_of_each_conversation_whatever_its_batch(folder: Path) -> None:
    found = RewardModel(str(folder)).score([SHORT, LONG])
    assert found == pytest.approx([logit(folder, SHORT), logit(folder, LONG)], abs=1e-5)
    assert found[0] != pytest.approx(found[1], abs=1e-4)


def test_a_conversation_beyond_the_models_positions_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="takes at most 64 tokens, found a conversation of"):
        RewardModel(str(folder)).score([[{"role": "user", "content": "word " * 100}]])


def test_a_model_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match="expected a sequence classifier with one output, found LlamaForCausalLM"
    ):
        RewardModel(str(build_tiny_model(tmp_path / "causal")))
    with pytest.raises(ModelError, match="found LlamaForSequenceClassification with 3"):
        RewardModel(str(build(tmp_path / "three", labels=3)))
    with pytest.raises(ModelError, match="cannot be loaded"):
        RewardModel(str(tmp_path / "nothing"))
