"""A mixture of experts keeps its routers' balance loss, and adapters stay on the language model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from alignkit.models.adapters import adapted_modules, language_model, peft_config
from alignkit.models.loading import experts_of
from alignkit.sections import LoraSection
from alignkit.trainers import FDPOConfig, FDPOTrainer
from tests.architectures import tiny_config, tiny_model
from tests.tiny import build_tiny_tokenizer

OPTIONS = {"use_cpu": True, "report_to": "none", "per_device_train_batch_size": 2, "max_length": 32}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def mixture(tokenizer: Any) -> Any:
    """A Mixtral of four experts with the tokenizer's vocabulary."""
    config = tiny_config("mixtral")
    config.vocab_size = len(tokenizer)
    config.router_aux_loss_coef = 0.5
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def trainer_of(model: Any, tokenizer: Any, folder: Path, **options: Any) -> Any:
    pairs = Dataset.from_list([{"prompt": "a b", "chosen": " c d e", "rejected": " f"}] * 4)
    config = FDPOConfig(output_dir=str(folder), **OPTIONS, **options)
    policy, reference = copy.deepcopy(model), copy.deepcopy(model)
    return FDPOTrainer(policy, reference, args=config, train_dataset=pairs, processing_class=tokenizer)


def loss_of(trainer: Any) -> float:
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
    trainer.model.train()
    return float(trainer.compute_loss(trainer.model, batch))


def test_the_balance_loss_is_added_with_the_models_own_weight(
    mixture: Any, tokenizer: Any, tmp_path: Path
) -> None:
    kept = trainer_of(mixture, tokenizer, tmp_path)
    without = trainer_of(mixture, tokenizer, tmp_path, router_aux_loss_coef=0.0)
    batch = kept.data_collator([kept.train_dataset[index] for index in range(2)])
    with torch.no_grad():
        own = mixture(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_router_logits=True
        ).aux_loss
    assert loss_of(kept) - loss_of(without) == pytest.approx(0.5 * float(own), rel=1e-4)


def test_the_routers_get_a_gradient_from_it(mixture: Any, tokenizer: Any, tmp_path: Path) -> None:
    trainer = trainer_of(mixture, tokenizer, tmp_path)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch).backward()
    assert trainer.model.model.layers[0].mlp.gate.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "experts"), [("mixtral", 4), ("qwen2_moe", 4), ("dbrx", 4), ("deepseek_v3", 4), ("llama", 0)]
)
def test_experts_are_counted_under_any_name_in_the_configuration(name: str, experts: int) -> None:
    assert experts_of(tiny_config(name)) == experts


@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_adapters_are_on_the_language_model_alone(name: str) -> None:
    model = tiny_model(name)
    inside = language_model(model)
    assert inside
    adapted = get_peft_model(model, peft_config(LoraSection(), model))
    changed = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert changed
    assert all(f"base_model.model.{inside}." in name for name in changed)


@pytest.mark.parametrize(("name", "more"), [("mixtral", ("experts", "gate")), ("gpt_oss", ())])
def test_what_adapters_change_in_a_mixture_is_named(name: str, more: tuple[str, ...]) -> None:
    model = tiny_model(name)
    assert language_model(model) is None
    adapted = get_peft_model(model, peft_config(LoraSection(), model))
    assert adapted_modules(adapted) == (*more, "k_proj", "o_proj", "q_proj", "v_proj")
