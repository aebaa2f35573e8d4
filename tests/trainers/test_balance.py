"""A mixture of experts keeps its routers' balance loss, and adapters stay on the language model."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from alignkit import train
from alignkit.adapter_sections import LoraSection
from alignkit.models.adapters import adapted_modules, language_model, peft_config
from alignkit.models.loading import experts_of
from alignkit.trainers import FDPOConfig, FDPOTrainer
from tests.architectures import tiny_config, tiny_model
from tests.jobs import recipe_of
from tests.preference import write_pairs
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


ATTENTION = ("k_proj", "o_proj", "q_proj", "v_proj")


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "qwen2_moe", "gpt_oss"])
def test_adapters_leave_out_the_experts_that_an_engine_would_not_serve(name: str) -> None:
    model = tiny_model(name)
    assert language_model(model) is None
    adapted = get_peft_model(model, peft_config(LoraSection(), model))
    assert adapted_modules(adapted) == ATTENTION


def test_experts_train_where_they_are_named() -> None:
    model = tiny_model("mixtral")
    lora = LoraSection(target_modules=["q_proj", "w1", "w2", "w3"])
    assert adapted_modules(get_peft_model(model, peft_config(lora, model))) == ("experts", "q_proj")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_a_mixture_trains_says_its_targets_and_loads_in_peft(name: str, tmp_path: Path) -> None:
    tokenizer = build_tiny_tokenizer(tmp_path / "model")
    config = tiny_config(name)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    write_pairs(tmp_path / "train.jsonl")
    (tmp_path / "run.yaml").write_text(
        recipe_of("f_dpo", lora={"r": 4, "alpha": 8})
        .model_copy(update={"output_dir": str(tmp_path / "run")})
        .to_yaml()
    )
    given = [
        f"model.path={tmp_path / 'model'}",
        f"data.train={tmp_path / 'train.jsonl'}",
        "training.max_steps=2",
    ]
    assert train.main([str(tmp_path / "run.yaml"), *given]) == 0
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert f"LoRA changes {', '.join(ATTENTION)} of a mixture of" in events
    assert "the experts are frozen" in events
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    loaded = PeftModel.from_pretrained(base, tmp_path / "run" / "adapter")
    changed = [weight for name, weight in loaded.named_parameters() if "lora_B" in name]
    assert any(weight.abs().sum() > 0 for weight in changed)
