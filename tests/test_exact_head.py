"""The fused head against a model's own logits, before anything is trained."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertLMHeadModel, LlamaForCausalLM

from alignkit.checks import require_exact_head
from alignkit.errors import ModelError
from alignkit.kernels.model_head import fuse_head, measured_head
from alignkit.train import main
from alignkit.trainers.pair import TeacherStudentPair
from tests.architectures import tiny_model
from tests.preference import write_pairs
from tests.tiny import build_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama."""
    return build_tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def llama(folder: Path) -> LlamaForCausalLM:
    """The tiny llama, loaded."""
    return LlamaForCausalLM.from_pretrained(folder)


def encoder(vocabulary: int = 96) -> BertLMHeadModel:
    """A model that is not causal."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.2,
    )
    return BertLMHeadModel(config)


def doing_to_logits(model: Any, change: Any) -> Any:
    """The model with a forward that applies `change` to its logits."""
    own = model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        output.logits = change(output.logits)
        return output

    model.forward = forward
    return model


def test_a_llama_agrees(llama: LlamaForCausalLM) -> None:
    require_exact_head(llama)


def test_the_check_leaves_the_model_unchanged(llama: LlamaForCausalLM) -> None:
    llama.train()
    before = set(vars(llama))
    require_exact_head(llama)
    assert llama.training
    assert set(vars(llama)) - before <= {"_measured_head"}
    assert isinstance(llama.lm_head, nn.Linear)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_agree_to_their_rounding(llama: LlamaForCausalLM, dtype: torch.dtype) -> None:
    require_exact_head(llama.to(dtype))


def test_it_looks_through_an_adapter(llama: LlamaForCausalLM) -> None:
    fuse_head(llama)
    adapted = get_peft_model(llama, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    require_exact_head(adapted)


def test_autocast_is_held_to_the_dtype_of_its_products(llama: LlamaForCausalLM) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        require_exact_head(llama)


def test_a_scale_and_a_soft_cap_are_measured(llama: LlamaForCausalLM) -> None:
    require_exact_head(doing_to_logits(llama, lambda logits: 7 * torch.tanh(logits * 0.3 / 7)))
    measured = measured_head(llama)
    assert measured is not None
    assert measured[:2] == (0.3, 7.0)


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: logits + 1,
        lambda logits: logits.clamp(max=2),
        lambda logits: logits * logits.abs(),
        lambda logits: logits * 0,
    ],
)
def test_other_operations_on_logits_are_refused(llama: LlamaForCausalLM, change: Any) -> None:
    with pytest.raises(
        ModelError, match="LlamaForCausalLM does more to its logits than scale and softly cap"
    ):
        require_exact_head(doing_to_logits(llama, change))


def test_comparing_log_probs_finds_what_the_probe_misses(llama: LlamaForCausalLM) -> None:
    def half(logits: torch.Tensor) -> torch.Tensor:
        words = llama.config.vocab_size
        return logits * torch.linspace(0.5, 1, words) if logits.size(-1) == words else logits

    with pytest.raises(ModelError, match=r"LlamaForCausalLM: .* differ .* own by \d\S* nats, .* at most"):
        require_exact_head(doing_to_logits(llama, half))


def test_a_head_that_trains_a_factor_of_its_logits_is_refused(llama: LlamaForCausalLM) -> None:
    factor = nn.Parameter(torch.tensor(2.0))
    fuse_head(doing_to_logits(llama, lambda logits: logits * factor))
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ModelError, match="applies trained weights to its logits"):
        llama(input_ids=ids, labels=ids, fused_lm_head=True)


def test_a_model_that_does_not_call_its_head_is_refused(llama: LlamaForCausalLM) -> None:
    llama.unused = nn.Linear(64, llama.config.vocab_size)
    llama.get_output_embeddings = lambda: llama.unused
    with pytest.raises(ModelError, match="LlamaForCausalLM does not make its logits by one call of its head"):
        require_exact_head(llama)


def test_a_model_whose_head_is_its_embedding_is_refused(llama: LlamaForCausalLM) -> None:
    llama.get_output_embeddings = llama.get_input_embeddings
    with pytest.raises(ModelError, match="LlamaForCausalLM has no linear head"):
        require_exact_head(llama)


def test_an_encoder_is_no_causal_model() -> None:
    with pytest.raises(ModelError, match=r"BertLMHeadModel is not a causal language model: .* by \d"):
        require_exact_head(encoder())


def test_a_teacher_is_looked_at_too(llama: LlamaForCausalLM) -> None:
    teacher = doing_to_logits(copy.deepcopy(llama), lambda logits: logits + 1)
    pair = TeacherStudentPair(llama, teacher, lambda *_: None, teacher_trains=False)
    with pytest.raises(ModelError, match="does more to its logits"):
        require_exact_head(pair)


@pytest.mark.parametrize(
    "name", ["llama4_text", "mllama", "modernbert-decoder", "recurrent_gemma", "falcon_h1"]
)
def test_architectures_whose_head_is_more_than_a_product_agree(name: str) -> None:
    require_exact_head(tiny_model(name))


def test_a_run_of_an_encoder_stops_before_its_first_step(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "encoder"
    build_tiny_model(model)
    encoder(512).save_pretrained(model)
    pairs = write_pairs(tmp_path / "pairs.jsonl", 4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{path: {model}}}\ndata: {{train: {pairs}, max_length: 64}}\nmethod: {{type: f_dpo}}\n"
        f"output_dir: {tmp_path / 'run'}\n"
    )
    assert main([str(recipe)]) == 1
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "BertLMHeadModel is not a causal language model" in result["error"]["message"]
    assert not list((tmp_path / "run").glob("checkpoints/*"))
