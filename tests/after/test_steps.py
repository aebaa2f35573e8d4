"""The steps after training on a stand-in run: what they choose, report and refuse."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.after import Adapter, Interpolate, TruncateRank
from alignkit.after.truncate_rank import ranks
from alignkit.errors import RecipeError
from alignkit.jobspec import recipe_for_job
from alignkit.methods import METHODS, ModelSource, hyperparameters_of
from alignkit.recipe import Recipe


@dataclass
class Run:
    """A run of one LoRA layer, whose held-out loss is a function of the adapter."""

    adapter: Adapter
    of: Callable[[Adapter], float] = lambda _: 0.0
    collapsed: Callable[[Adapter], bool] = lambda _: False
    start_adapter: Adapter | None = None
    messages: list[tuple[str, bool]] = field(default_factory=list)
    kept: dict[str, Adapter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = self.adapter

    def put_adapter(self, adapter: Adapter) -> None:
        self.now = adapter

    def loss(self) -> float:
        return self.of(self.now)

    def faults(self) -> list[str]:
        return ["repetition"] if self.collapsed(self.now) else []

    def keep(self, name: str, _note: str) -> None:
        self.kept[name] = self.now

    def report(self, message: str, *, warn: bool = False) -> None:
        self.messages.append((message, warn))


def adapter(rank: int = 8) -> Adapter:
    weights = {"q.lora_A.weight": torch.ones(rank, 3), "q.lora_B.weight": torch.ones(2, rank)}
    return Adapter(weights, rank, 2 * rank)


def strength(of: Adapter) -> float:
    return float(of.weights["q.lora_B.weight"][0, 0])


def test_a_fixed_amount_scales_the_adapter() -> None:
    run = Run(adapter())
    Interpolate(amount=0.25).apply(run)
    assert strength(run.now) == 0.25
    assert run.messages == [("Interpolated with the start: 0.25 of the trained weights", False)]


def test_published_amounts_are_kept_beside_the_result() -> None:
    run = Run(adapter())
    Interpolate(amount=0.5, publish=[0.25, 1.0]).apply(run)
    assert {name: strength(one) for name, one in run.kept.items()} == {"amount-0.25": 0.25, "amount-1": 1.0}
    assert strength(run.now) == 0.5
    with pytest.raises(ValueError, match=r"expected each amount once, found 0\.25, 0\.25"):
        Interpolate(publish=[0.25, 0.25])


def test_an_amount_above_one_is_a_warning() -> None:
    run = Run(adapter())
    Interpolate(amount=1.25).apply(run)
    assert strength(run.now) == 1.25
    assert run.messages[0][1]


@pytest.mark.parametrize(("best", "expected"), [(0.6, 0.5), (0.1, 0.25), (2.0, 1.0)])
def test_auto_takes_the_amount_of_the_lowest_loss(best: float, expected: float) -> None:
    run = Run(adapter(), of=lambda one: (strength(one) - best) ** 2)
    Interpolate(amount="auto").apply(run)
    assert strength(run.now) == expected


def test_auto_never_takes_an_amount_that_collapsed() -> None:
    run = Run(adapter(), of=lambda one: -strength(one), collapsed=lambda one: strength(one) > 0.6)
    Interpolate(amount="auto").apply(run)
    assert strength(run.now) == 0.5
    all_bad = Run(adapter(), collapsed=lambda _: True)
    Interpolate(amount="auto").apply(all_bad)
    assert strength(all_bad.now) == 0.25
    assert all_bad.messages[0][1]


def test_auto_rank_takes_the_smaller_of_near_equals() -> None:
    run = Run(adapter(12), of=lambda one: {1: 0.9, 2: 0.5, 4: 0.5 - 1e-6, 8: 0.5, 12: 0.6}[one.rank])
    TruncateRank().apply(run)
    assert run.now.rank == 2
    assert "1: 0.9, 2: 0.5" in run.messages[0][0]


def test_a_fixed_rank_cuts_the_adapter() -> None:
    run = Run(adapter())
    TruncateRank(rank=3).apply(run)
    assert run.now.weights["q.lora_A.weight"].shape == (3, 3)
    assert run.now.scale == adapter().scale


def test_auto_tries_powers_of_two_and_all() -> None:
    assert [ranks(most) for most in (1, 8, 12)] == [(1,), (1, 2, 4, 8), (1, 2, 4, 8, 12)]


def parse(**values: Any) -> Recipe:
    return Recipe.parse(
        {
            "model": {"path": "model"},
            "data": {"train": "train.jsonl", **values.pop("data", {})},
            "method": {"type": "f_dpo"},
            "output_dir": "out",
            **values,
        }
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"after": [{"type": "merge"}]}, "expected one of interpolate, truncate_rank, found 'merge'"),
        (
            {"after": [{"type": "interpolate", "amount": 0}]},
            "amount: expected 'auto' or greater than 0, found 0",
        ),
        ({"after": [{"type": "interpolate", "amount": 2}]}, "less than or equal to 1.5"),
        (
            {"after": [{"type": "interpolate", "amount": "auto"}]},
            "after.0.amount: auto needs data.validation",
        ),
        ({"after": [{"type": "interpolate"}, {"type": "truncate_rank"}]}, "after.1.rank: auto needs"),
        (
            {"after": [{"type": "truncate_rank", "rank": 32}], "lora": {"r": 16}},
            "after.0.rank: expected at most lora.r 16, found 32",
        ),
        (
            {"after": [{"type": "truncate_rank", "rank": 2}], "lora": None},
            "truncate_rank needs lora, found null",
        ),
        ({"lora": {"nested": {}, "use_rslora": True}}, "nested: expected without use_rslora, found both"),
        ({"lora": {"nested": {"spread": 0}}}, "lora.nested.spread: expected greater than 0"),
    ],
)
def test_what_cannot_be_is_refused_with_its_place(values: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse(**values)
    assert words in str(caught.value)


def job(hyperparameters: dict[str, Any]) -> Recipe:
    def no_models(name: str) -> ModelSource:
        raise AssertionError(name)

    return recipe_for_job(
        method="f_dpo",
        hyperparameters=hyperparameters,
        start=ModelSource("models/base"),
        train_file=Path("train"),
        validation_file=Path("validation"),
        train_rows=100,
        seed=0,
        output_dir=Path("out"),
        resolve_model=no_models,
    ).recipe


def test_a_job_gives_the_same_steps_as_a_recipe() -> None:
    steps = [{"type": "interpolate", "amount": 0.5}, {"type": "truncate_rank", "rank": "auto"}]
    found = job({"after": steps, "lora_nested": {"spread": 2.0}, "gradient_direction": "orthogonal"})
    assert found.after == parse(after=steps, data={"validation": "v"}).after
    assert found.lora is not None
    assert found.lora.nested is not None
    assert found.lora.nested.spread == 2.0
    assert found.training.gradient == "orthogonal"
    assert job({}).after == []


@pytest.mark.parametrize("method", METHODS)
def test_every_job_takes_the_steps_within_the_recipes_bounds(method: str) -> None:
    schema = hyperparameters_of(METHODS[method]).model_json_schema()
    recipe = Recipe.model_json_schema()
    for step in ("Interpolate", "TruncateRank", "NestedSection"):
        assert schema["$defs"][step] == recipe["$defs"][step]


def test_a_job_is_refused_with_the_path_of_its_step() -> None:
    with pytest.raises(RecipeError) as caught:
        job({"after": [{"type": "interpolate", "amount": 3}]})
    assert caught.value.issues[0].path.startswith("method.f_dpo.hyperparameters.after.0")


def test_weights_of_all_kinds_reach_the_run() -> None:
    """Full weights are interpolated by name."""

    class Full:
        adapter = None
        put: dict[str, Tensor]

        def weights(self) -> dict[str, Tensor]:
            return {"w": torch.tensor([2.0])}

        def start_weights(self) -> dict[str, Tensor]:
            return {"w": torch.tensor([0.0]), "more": torch.tensor([1.0])}

        def put_weights(self, weights: dict[str, Tensor]) -> None:
            self.put = weights

        def report(self, *_: Any, **__: Any) -> None:
            pass

    run = Full()
    Interpolate(amount=0.5).apply(run)
    assert run.put == {"w": torch.tensor([1.0])}
