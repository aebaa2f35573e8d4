"""What holds of every row term: neutral options change nothing, splits change nothing, a resume repeats the run."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit import terms
from alignkit.data import parse_preference, tokenise
from alignkit.errors import DataError
from alignkit.methods import FDPO, MaPO
from alignkit.terms import RowTerm, RowView, Setup, Term
from alignkit.trainers import FDPOConfig, FDPOTrainer
from alignkit.trainers.terms import RowFacts, RowTerms
from tests.quiet import QUIET
from tests.tiny import build_tiny_model

NEUTRAL: dict[str, dict[str, Any]] = {
    "robust": {"strength": math.inf},
    "align_groups": {"hessian_weight": 0, "gradient_weight": 0},
    "early_learning": {"weight": 0},
    "thresholds": {"chosen_weight": 0},
}
ACTIVE: dict[str, dict[str, Any]] = {
    "robust": {"strength": 0.02, "structured": True},
    "align_groups": {},
    "early_learning": {},
    "thresholds": {"chosen_floor": 0.2, "rejected_weight": 0.5},
}
ROW_TERMS = [name for name in terms.available() if issubclass(terms.get(name), RowTerm)]


def test_every_row_term_is_tested_here() -> None:
    assert sorted(ROW_TERMS) == sorted(NEUTRAL) == sorted(ACTIVE)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rows(model_dir: Path) -> Dataset:
    parsed = [
        parse_preference(
            {
                "prompt": f"Question {index}?",
                "chosen": "yes " * (index % 4 + 1),
                "rejected": "no, never " * (index % 3 + 1),
                "group": "ab"[index % 2],
            }
        )
        for index in range(8)
    ]
    tokens = tokenise(parsed, AutoTokenizer.from_pretrained(model_dir), "f_dpo", 128)
    return tokens.add_column("group", [row.group for row in parsed])


def built(folder: Path, model_dir: Path, rows: Dataset, use: list[Term], **options: Any) -> FDPOTrainer:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "logging_steps": 1,
        **QUIET,
        "precompute_ref_log_probs": True,
        "beta": 0.5,
        **options,
    }
    trainer = FDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=FDPOConfig(**settings),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=rows,
        terms=use,
    )
    trainer.group_by_length = False  # off for some terms: another order of a step's rows rounds otherwise
    return trainer


def weights(trainer: FDPOTrainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, model_dir: Path, rows: Dataset) -> torch.Tensor:
    trainer = built(tmp_path_factory.mktemp("plain"), model_dir, rows, [])
    trainer.train()
    return weights(trainer)


def made(name: str, options: dict[str, Any]) -> Term:
    return terms.get(name)(**options)


@pytest.mark.parametrize("name", ROW_TERMS)
def test_a_neutral_term_is_bitwise_the_plain_run(
    tmp_path: Path, model_dir: Path, rows: Dataset, plain: torch.Tensor, name: str
) -> None:
    trainer = built(tmp_path, model_dir, rows, [made(name, NEUTRAL[name])])
    trainer.train()
    assert torch.equal(weights(trainer), plain)


@pytest.mark.parametrize("name", ROW_TERMS)
def test_an_active_term_resumes_bit_for_bit_and_moves_the_run(
    tmp_path: Path, model_dir: Path, rows: Dataset, plain: torch.Tensor, name: str
) -> None:
    use, saving = [made(name, ACTIVE[name])], {"save_strategy": "steps", "save_steps": 2}
    whole = built(tmp_path, model_dir, rows, use, **saving)
    whole.train()
    assert not torch.equal(weights(whole), plain)
    resumed = built(tmp_path, model_dir, rows, use, **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(weights(resumed), weights(whole))
    for ours, theirs in zip(resumed.row_terms.state(), whole.row_terms.state(), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    logged = [entry for entry in whole.state.log_history if "loss" in entry]
    assert [entry for entry in resumed.state.log_history if "loss" in entry] == [
        {**entry} for entry in logged
    ]


@pytest.mark.parametrize("name", [name for name in ROW_TERMS if not terms.get(name).micro_batch_matters])
def test_a_step_does_not_depend_on_its_micro_batches(
    tmp_path: Path, model_dir: Path, rows: Dataset, name: str
) -> None:
    found = []
    for size in (4, 1):
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4 // size}
        trainer = built(tmp_path / str(size), model_dir, rows, [made(name, ACTIVE[name])], **split)
        trainer.train()
        found.append((weights(trainer), trainer.row_terms.state()[0]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for key, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], value, rtol=1e-4, atol=1e-5)


class TwoProcesses:
    """A gather that returns this process's rows before or after another's."""

    def __init__(self, other: torch.Tensor, *, first: bool) -> None:
        self.other, self.first = other, first

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, self.other] if self.first else [self.other, own])


class OneProcess:
    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return own


@pytest.mark.parametrize("name", [name for name in ROW_TERMS if not terms.get(name).micro_batch_matters])
def test_a_state_does_not_depend_on_the_processes(name: str) -> None:
    setup = Setup(8, 8, ("a", "b"), (4, 4), math.log(2))
    order = torch.tensor([5, 2, 7, 0, 3, 6, 1, 4])
    generator = torch.Generator().manual_seed(0)
    losses, chosen, rejected = torch.randn(3, 8, generator=generator)

    def begun() -> RowTerms:
        return RowTerms([made(name, ACTIVE[name])], setup, torch.device("cpu"))

    def apply(use: RowTerms, part: torch.Tensor, padding: int = 0) -> torch.Tensor:
        """What each process records of its rows; the last `padding` of them are padding."""
        own = [value[part] for value in (losses.abs(), chosen, rejected)]
        view = RowView(own[0], part, part % 2, own[1] - own[2], own[1], own[2])
        is_real = torch.arange(len(part)) < len(part) - padding
        use.apply(view, is_real)
        values, real = use._seen[-1]
        return torch.cat([values, real.double()[:, None]], dim=1)

    whole = begun()
    apply(whole, order)
    whole.fold(OneProcess())
    for first in (True, False):
        one, other = begun(), begun()
        apply(one, order[:4])
        theirs = apply(other, torch.cat([order[4:], order[:2]]), padding=2)
        one.fold(TwoProcesses(theirs, first=first))
        for key, value in whole.state()[0].items():
            assert torch.equal(one.state()[0][key], value)


def test_terms_compose_weights_multiply_and_extras_add(
    tmp_path: Path, model_dir: Path, rows: Dataset
) -> None:
    use = [made(name, ACTIVE[name]) for name in ROW_TERMS]
    trainer = built(tmp_path, model_dir, rows, use, max_steps=2)
    trainer.train()
    logged = {key for entry in trainer.state.log_history for key in entry}
    assert {"robust/ess", "groups/a/loss", "groups/b/weight", "thresholds/chosen_below"} <= logged
    state = trainer.row_terms
    ids = torch.tensor([0, 1, 0, 1])
    losses, margins, chosen, rejected = torch.rand(4, 4, requires_grad=True)
    view = RowView(losses, ids, ids, margins, chosen, rejected)
    all_weights, all_extra = state.apply(view, torch.ones(4, dtype=torch.bool))
    effects = [term.apply(view, own) for term, own in zip(state.terms, state._states, strict=True)]
    weights_of = [effect.weights for effect in effects if effect.weights is not None]
    torch.testing.assert_close(all_weights, math.prod(weights_of, start=torch.ones(4)))
    torch.testing.assert_close(all_extra, sum(e.extra for e in effects if e.extra is not None))


def test_rows_without_a_group_are_refused_where_a_term_needs_groups(
    tmp_path: Path, model_dir: Path, rows: Dataset
) -> None:
    lacking = rows.remove_columns(["group"]).add_column("group", ["a", None] * 4)
    with pytest.raises(
        DataError, match="align_groups needs a group in every row, found 4 of 8 rows without one"
    ):
        built(tmp_path, model_dir, lacking, [made("align_groups", {})])
    with pytest.raises(DataError, match="robust needs a group in every row, found 8 of 8 rows without one"):
        built(tmp_path, model_dir, rows.remove_columns(["group"]), [made("robust", {"over": "groups"})])


def test_a_method_without_a_reference_takes_no_reward_levels() -> None:
    assert terms.get("thresholds").misfit(MaPO) == (
        "thresholds needs rewards relative to a reference, and mapo has none"
    )
    assert FDPO().start_loss() == pytest.approx(math.log(2))
    assert FDPO(sft_weight=1.0).start_loss() is None


def test_held_out_groups_are_measured_apart_and_the_probe_is_logged(
    tmp_path: Path, model_dir: Path, rows: Dataset
) -> None:
    flipped = rows.add_column("flipped", [True, False] * 4)
    trainer = built(tmp_path, model_dir, flipped, [], max_steps=1, per_device_train_batch_size=8)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {"probe/memorised", "probe/accuracy_true"} <= entry.keys()
    held_out = FDPOTrainer(
        model=trainer.model,
        args=trainer.args,
        processing_class=trainer.processing_class,
        train_dataset=rows.remove_columns(["group"]),
        eval_dataset=rows,
    )
    metrics = held_out.evaluate()
    own = [metrics[f"eval_groups/{name}/accuracy"] for name in "ab"]
    assert sum(own) / 2 == pytest.approx(metrics["eval_rewards/accuracies"])
    assert metrics["eval_opis"] >= 0


def test_the_probe_counts_swapped_rows_fitted_as_given_and_rows_fitted_as_they_should_be() -> None:
    flipped = torch.tensor([True, True, False, False, False])
    found = RowFacts(torch.zeros(5), None, flipped).probe(torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]))
    means = {name: float(above.sum() / below.sum()) for name, (above, below) in found.items()}
    assert means == pytest.approx({"probe/memorised": 1 / 2, "probe/accuracy_true": 3 / 5})
