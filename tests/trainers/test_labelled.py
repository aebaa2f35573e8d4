"""LabelledTrainer with KTO: TRL's losses, a baseline that no split changes, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import KTOConfig, KTOTrainer

from alignkit.data import parse_labelled, tokenise
from alignkit.errors import DataError
from alignkit.losses import LabelledLogps
from alignkit.methods import KTO
from alignkit.trainers import LabelledTrainer
from alignkit.trainers.mismatched import MISMATCHED, partners
from tests.quiet import QUIET
from tests.tiny import build_tiny_model

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def reference_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("reference"), seed=3)


def answers(count: int = 12) -> Dataset:
    return Dataset.from_list(
        [
            {
                "prompt": [{"role": "user", "content": f"Question {index}?"}],
                "completion": [{"role": "assistant", "content": "yes, no " * (index % 4 + 1)}],
                "label": index % 3 != 0,
            }
            for index in range(count)
        ]
    )


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 8,
        "learning_rate": 0.05,
        "optim": "sgd",  # Adam's first steps make of a gradient's last bits as much as of all the others
        "max_grad_norm": 1e9,
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "logging_steps": 1,
        **QUIET,
        "max_length": 128,
        **options,
    }


def common(model_dir: Path, reference_dir: Path | None, peft: LoraConfig | None) -> dict[str, Any]:
    load = AutoModelForCausalLM.from_pretrained
    return {
        "model": load(model_dir),
        "ref_model": None if reference_dir is None else load(reference_dir),
        "processing_class": AutoTokenizer.from_pretrained(model_dir),
        "peft_config": peft,
    }


def trained(
    folder: Path,
    model_dir: Path,
    reference_dir: Path | None = None,
    peft: LoraConfig | None = None,
    dataset: Dataset | None = None,
    held_out: Dataset | None = None,
    method: KTO | None = None,
    **options: Any,
) -> LabelledTrainer:
    trainer = LabelledTrainer(
        args=KTOConfig(**settings(folder, **options)),
        method=method or KTO(beta=0.5),
        train_dataset=dataset or answers(),
        eval_dataset=held_out,
        **common(model_dir, reference_dir, peft),
    )
    trainer.train()
    return trainer


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
def test_losses_equal_trls(tmp_path: Path, model_dir: Path, reference_dir: Path, peft: Any) -> None:
    """TRL's KTOTrainer, trained beside it, where both define the same baseline.

    That is one process with one micro-batch a step, and TRL's own mismatched answers, which are a rotation of that
    batch, handed on in their column. An evaluation agrees where it is one batch.
    """
    weights = {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.75}
    theirs = KTOTrainer(
        args=KTOConfig(**settings(tmp_path / "a"), **weights),
        train_dataset=answers(),
        eval_dataset=answers(8),
        **common(model_dir, reference_dir, peft),
    )
    theirs.train()
    mine = trained(
        tmp_path / "b",
        model_dir,
        reference_dir,
        peft,
        theirs.train_dataset,
        theirs.eval_dataset,
        KTO(**weights),
    )
    assert mine.train_dataset is theirs.train_dataset
    assert min(logged(mine, "kl")) > 0.1
    for name in (
        "loss",
        "kl",
        "rewards/chosen",
        "rewards/rejected",
        "rewards/margins",
        "logps/chosen",
        "entropy",
    ):
        assert logged(mine, name) == pytest.approx(logged(theirs, name), rel=1e-5, abs=1e-5), name
    found, expected = mine.evaluate(), theirs.evaluate()
    for name in ("loss", "kl", "rewards/margins", "entropy"):
        assert found[f"eval_{name}"] == pytest.approx(expected[f"eval_{name}"], rel=1e-5), name


def test_how_a_step_is_split_changes_nothing(tmp_path: Path, model_dir: Path, reference_dir: Path) -> None:
    """Micro-batches of 4, 2 and 1 row; of the 10 rows the last step has two."""

    def run(micro: int) -> LabelledTrainer:
        options = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": 4 // micro}
        options |= {"train_sampling_strategy": "random", "seed": 4, "learning_rate": 2e-3}
        return trained(tmp_path / str(micro), model_dir, reference_dir, dataset=answers(10), **options)

    whole = run(4)
    weights = whole.model.state_dict()
    assert logged(whole, "kl")[-1] > 1
    for micro in (2, 1):
        split = run(micro)
        assert logged(split, "loss") == pytest.approx(logged(whole, "loss"), abs=1e-6), micro
        for name in ("kl", "rewards/chosen", "rewards/rejected", "rewards/accuracies"):  # of sums of 100 nats
            assert logged(split, name) == pytest.approx(logged(whole, name), rel=1e-5), (micro, name)
        for name, weight in split.model.state_dict().items():
            torch.testing.assert_close(weight, weights[name], rtol=0, atol=1e-6)


def test_an_evaluation_has_one_baseline_however_it_is_split(
    tmp_path: Path, model_dir: Path, reference_dir: Path
) -> None:
    """That of all held-out rows, as if they were one batch, and logged losses follow from it."""
    trainer = trained(tmp_path, model_dir, reference_dir, held_out=answers(7), max_steps=1)
    found = []
    for size in (7, 3, 1):
        trainer.args.per_device_eval_batch_size = size
        found.append(
            {
                name: value
                for name, value in trainer.evaluate().items()
                if "runtime" not in name and "second" not in name
            }
        )
    assert found[0]["eval_kl"] > 0.1
    for split in found[1:]:
        assert split == pytest.approx(found[0], rel=1e-5)


def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(
    tmp_path: Path, model_dir: Path, reference_dir: Path
) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "train_sampling_strategy": "random", "max_steps": 4}
    options |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "optim": "adamw_torch"}
    alone = trained(tmp_path, model_dir, reference_dir, dataset=answers(10), **options)
    resumed = LabelledTrainer(
        args=KTOConfig(**settings(tmp_path, **options)),
        method=KTO(beta=0.5),
        train_dataset=answers(10),
        **common(model_dir, reference_dir, None),
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name in ("loss", "kl", "num_tokens"):
        assert logged(resumed, name) == logged(alone, name), name
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, alone.model.state_dict()[name]), name


def test_a_forward_of_its_own_is_a_step(tmp_path: Path, model_dir: Path, reference_dir: Path) -> None:
    """Outside an optimizer step, the baseline is that of the batch."""
    trainer = trained(tmp_path, model_dir, reference_dir, max_steps=1)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch))
    found = trainer._items["train"].take()
    trainer._baseline = torch.tensor(99.0)
    again = trainer.compute_loss(trainer.model, dict(batch))
    assert trainer._items["train"].take() == found
    assert found["kl"] < 50
    assert bool(torch.isfinite(again))


def test_pairs_are_taken_apart_and_trained_with_an_adapter(tmp_path: Path, model_dir: Path) -> None:
    rows = [
        parse_labelled(
            {"prompt": f"Question {index}?", "chosen": "yes " * (index % 3 + 1), "rejected": "no, never"}
        )
        for index in range(8)
    ]
    tokens = tokenise(rows, AutoTokenizer.from_pretrained(model_dir), "kto", 128)
    options = {
        "max_steps": 12,
        "optim": "adamw_torch",
        "learning_rate": 5e-3,
        "train_sampling_strategy": "random",
    }
    trainer = trained(tmp_path, model_dir, None, LORA, tokens, tokens, **options)
    assert trainer.train_dataset.num_rows == 16
    assert trainer.ref_model is None
    metrics = trainer.evaluate()
    assert metrics["eval_rewards/margins"] > 0.5
    assert metrics["eval_rewards/accuracies"] > 0.9
    assert logged(trainer, "loss")[-1] < logged(trainer, "loss")[0] == pytest.approx(0.5)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 99))
def test_mismatched_answers_are_a_permutation_that_leaves_no_row_its_own_prompt(
    prompts: list[int], seed: int
) -> None:
    found = partners([[prompt, prompt] for prompt in prompts], seed)
    assert sorted(found) == list(range(len(prompts)))
    kept = sum(prompts[index] == prompts[other] for index, other in enumerate(found))
    most = max(map(prompts.count, prompts))
    assert kept == max(0, 2 * most - len(prompts))


def test_mismatched_answers_do_not_depend_on_batches(tmp_path: Path, model_dir: Path) -> None:
    trainers = [
        LabelledTrainer(
            args=KTOConfig(**settings(tmp_path, per_device_train_batch_size=size)),
            method=KTO(),
            train_dataset=answers(),
            **common(model_dir, None, LORA),
        )
        for size in (1, 4)
    ]
    one, four = (trainer.train_dataset for trainer in trainers)
    assert one[MISMATCHED][:] == four[MISMATCHED][:]
    assert sorted(one[MISMATCHED][:]) == sorted(one["completion_ids"][:])


def test_kto_by_hand() -> None:
    """The paper's loss, written out with the logistic function."""
    z, z0, beta = [1.5, -0.5, 0.25, -2.0], 0.75, 0.3
    desirable = [True, True, False, False]
    policy = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    rows = LabelledLogps(
        policy, torch.zeros(4).double(), torch.tensor(desirable), torch.ones(4), torch.tensor(z0).double()
    )
    found = KTO(beta=beta, desirable_weight=2.0, undesirable_weight=0.5).loss(rows)
    expected = [
        2.0 * (1 - sigmoid(beta * (one - z0))) if good else 0.5 * (1 - sigmoid(beta * (z0 - one)))
        for one, good in zip(z, desirable, strict=True)
    ]
    assert found.losses.tolist() == pytest.approx(expected)
    assert found.rewards.tolist() == pytest.approx([beta * one for one in z])
    found.losses.sum().backward()
    signs: Tensor = policy.grad.sign()
    assert signs.tolist() == [-1, -1, 1, 1]  # desirable answers are made likelier, undesirable ones less


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            {"loss_type": "apo_zero_unpaired"},
            "loss_type='apo_zero_unpaired' is not an option of kto: the loss is",
        ),
        ({"beta": 0.2}, "beta=0.2 is not an option of kto: give it to the method"),
        ({"undesirable_weight": 2.0}, "undesirable_weight=2.0"),
        ({"precompute_ref_log_probs": True}, "the mismatched answers need reference log-probs too"),
    ],
)
def test_options_without_meaning_are_refused(tmp_path: Path, option: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LabelledTrainer(
            None, args=KTOConfig(**settings(tmp_path, **option)), method=KTO(), train_dataset=answers()
        )


@pytest.mark.parametrize("label", [True, False])
def test_answers_of_one_label_are_refused_in_one_sentence(
    tmp_path: Path, model_dir: Path, label: bool
) -> None:
    rows = answers(4).remove_columns("label").add_column("label", [label] * 4)
    kind = "desirable" if label else "undesirable"
    with pytest.raises(DataError, match=f"^train dataset: expected .* found only {kind} ones$"):
        trained(tmp_path, model_dir, peft=LORA, dataset=rows)


def test_a_dataset_without_the_columns_and_a_stream_are_refused(tmp_path: Path, model_dir: Path) -> None:
    texts = Dataset.from_list([{"messages": "Hi"}])
    with pytest.raises(
        DataError, match=r"expected the columns prompt, completion and label, or .*; found messages$"
    ):
        trained(tmp_path, model_dir, peft=LORA, dataset=texts)
    stream = IterableDataset.from_generator(lambda: iter(answers(4)))
    with pytest.raises(DataError, match="expected a Dataset, found a stream"):
        trained(tmp_path, model_dir, peft=LORA, dataset=stream)
