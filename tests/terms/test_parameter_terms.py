"""What holds of every parameter term in a run, and what each measures on a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from alignkit import terms
from alignkit.data import parse_completion, parse_preference, tokenise
from alignkit.errors import DataError, ModelError
from alignkit.terms.anchor import FISHER, Anchor
from alignkit.terms.base import ParameterTerm, Term
from alignkit.trainers import FDPOConfig, FDPOTrainer, SupervisedTrainer
from tests.tiny import build_tiny_adapter, build_tiny_model

NAMES = [name for name in terms.available() if issubclass(terms.get(name), ParameterTerm)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def negative(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> str:
    return str(build_tiny_adapter(model_dir, tmp_path_factory.mktemp("negative")))


def rows(model_dir: Path) -> Dataset:
    pairs = [
        {
            "prompt": f"Question {at}?",
            "chosen": "yes " * (at % 4 + 1),
            "rejected": "no, never " * (at % 3 + 1),
        }
        for at in range(8)
    ]
    return tokenise(
        list(map(parse_preference, pairs)), AutoTokenizer.from_pretrained(model_dir), "f_dpo", 128
    )


def built(folder: Path, model_dir: Path, use: list[Term], **options: Any) -> FDPOTrainer:
    data, held_out = rows(model_dir), options.pop("held_out", True)
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "beta": 0.5,
        **options,
    }
    return FDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=FDPOConfig(**settings),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=data,
        eval_dataset=data.select(range(3)) if held_out else None,
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        terms=use,
    )


def made(name: str, negative: str, weight: float) -> Term:
    options = {"anchor": {}, "repel": {"adapters": [negative]}}[name]
    return terms.get(name)(weight=weight, **options)


def weights(trainer: FDPOTrainer) -> torch.Tensor:
    trained = [value for value in trainer.model.parameters() if value.requires_grad]
    return torch.cat([value.detach().flatten() for value in trained])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, model_dir: Path) -> torch.Tensor:
    trainer = built(tmp_path_factory.mktemp("plain"), model_dir, [])
    trainer.train()
    return weights(trainer)


@pytest.mark.parametrize("name", NAMES)
def test_weight_zero_is_bitwise_the_plain_run(
    tmp_path: Path, model_dir: Path, negative: str, plain: torch.Tensor, name: str
) -> None:
    trainer = built(tmp_path, model_dir, [made(name, negative, 0.0)])
    trainer.train()
    assert torch.equal(weights(trainer), plain)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_moves_resumes_bit_for_bit_and_does_not_depend_on_its_micro_batches(
    tmp_path: Path, model_dir: Path, negative: str, plain: torch.Tensor, name: str
) -> None:
    use = [made(name, negative, 5.0)]
    whole = built(tmp_path / "a", model_dir, use)
    whole.train()
    assert not torch.equal(weights(whole), plain)
    assert any("terms/penalty" in entry for entry in whole.state.log_history)
    resumed = built(tmp_path / "a", model_dir, use)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert torch.equal(weights(resumed), weights(whole))
    split = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    parts = built(tmp_path / "b", model_dir, use, **split)
    parts.train()
    torch.testing.assert_close(weights(parts), weights(whole), rtol=1e-4, atol=1e-5)
    (tmp_path / "a" / "terms" / f"{name}.safetensors").unlink()
    lost = built(tmp_path / "a", model_dir, use)
    with pytest.raises(ModelError, match=f"terms/{name}.safetensors is missing"):
        lost.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))


def test_a_fresh_adapters_a_has_no_information(tmp_path: Path, model_dir: Path) -> None:
    trainer = built(tmp_path, model_dir, [Anchor()], max_steps=1)
    trainer.train()
    (state,) = trainer.parameter_terms._states
    informed = {name: float(value.abs().sum()) for name, value in state.items() if name.startswith(FISHER)}
    assert all((value == 0.0) is (".lora_A." in name) for name, value in informed.items())


def test_without_rows_to_measure_on_the_anchor_is_refused(tmp_path: Path, model_dir: Path) -> None:
    trainer = built(tmp_path, model_dir, [Anchor()], held_out=False)
    with pytest.raises(DataError, match="expected `data`, or held-out rows that must not be forgotten"):
        trainer.train()


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_supervised_fine_tuning_is_anchored_too(tmp_path: Path, model_dir: Path, weight: float) -> None:
    answers = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes " * 3}]}
    ]
    tokens = tokenise(
        [parse_completion(row) for row in answers * 4],
        AutoTokenizer.from_pretrained(model_dir),
        "supervised",
        64,
    )

    def trained(use: list[Term]) -> torch.Tensor:
        trainer = SupervisedTrainer(
            model=AutoModelForCausalLM.from_pretrained(model_dir),
            args=SFTConfig(
                str(tmp_path / str(len(use))),
                per_device_train_batch_size=4,
                learning_rate=0.01,
                optim="sgd",
                max_steps=3,
                report_to="none",
                save_strategy="no",
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                disable_tqdm=True,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            processing_class=AutoTokenizer.from_pretrained(model_dir),
            train_dataset=tokens,
            terms=use,
        )
        trainer.train()
        return weights(trainer)

    start = weights_of(AutoModelForCausalLM.from_pretrained(model_dir))
    plain, anchored = trained([]), trained([Anchor(weight=weight, diagonal="one")])
    assert torch.equal(plain, anchored) is (weight == 0)
    if weight:
        assert (anchored - start).norm() < (plain - start).norm()


def weights_of(model: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])
