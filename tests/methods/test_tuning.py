"""Which options can be tuned, on which scale they move, and the sentences that refuse the others."""

import math
from typing import Any

import pytest
import torch
from pydantic import Field

from alignkit.errors import RecipeError
from alignkit.losses import PairLogps, PreferenceLoss
from alignkit.methods import DPO, FDPO, MaPO, PairMethod
from alignkit.methods.tuning import continuous, scale_of, with_values
from alignkit.recipe import Recipe
from tests.jobs import job_of


def recipe(**changes: Any) -> Recipe:
    """A recipe with held-out rows and these sections."""
    sections = {"model": {"path": "m"}, "method": {"type": "f_dpo"}, "output_dir": "o"}
    return Recipe.parse({**sections, "data": {"train": "t", "validation": "v"}, **changes})


def test_options_with_two_bounds_are_continuous() -> None:
    assert continuous(DPO) == ["beta"]
    assert continuous(FDPO) == ["beta", "label_smoothing", "sft_weight"]
    assert continuous(MaPO) == ["beta", "gain", "scale"]


def test_a_scale_starts_exactly_at_the_options_value() -> None:
    zero = torch.zeros(3)
    assert torch.equal(scale_of(DPO(beta=0.1), "beta").value(zero), torch.full((3,), 0.1))
    for share in (0.0, 0.2):
        method = FDPO(label_smoothing=share)
        assert torch.equal(scale_of(method, "label_smoothing").value(zero), torch.full((3,), share))


def test_a_wide_option_moves_by_factors_and_a_share_within_its_bounds() -> None:
    moved = torch.tensor([-math.log(2), math.log(3), 50.0])
    torch.testing.assert_close(scale_of(DPO(beta=0.1), "beta").value(moved), torch.tensor([0.05, 0.3, 100.0]))
    share = scale_of(FDPO(label_smoothing=0.2), "label_smoothing").value(
        torch.tensor([-50.0, -0.1, 0.1, 50.0])
    )
    assert share[0] == 0
    assert 0 < share[1] < 0.2 < share[2] < share[3] < 0.5


def test_a_row_gets_the_loss_of_its_own_value() -> None:
    torch.manual_seed(0)
    logps = torch.randn(4, 3)
    pairs = PairLogps(*logps, torch.tensor([3, 2, 4]), torch.tensor([1, 5, 2]))
    values = {"beta": torch.tensor([0.1, 0.5, 2.0]), "label_smoothing": torch.tensor([0.0, 0.1, 0.3])}
    for fixed in (
        {"divergence": "js_divergence"},
        {"robust": True},
        {"match_curvature": True, "sft_weight": 1.0},
    ):
        found = with_values(FDPO(**fixed), values).loss(pairs)
        for at in range(3):
            row = {name: float(value[at]) for name, value in values.items()}
            alone = FDPO(**fixed, **row).loss(pairs)
            torch.testing.assert_close(found.losses[at], alone.losses[at])
            torch.testing.assert_close(found.chosen_rewards[at], alone.chosen_rewards[at])


class Whole(PairMethod):
    """A loss that needs one value for all rows."""

    strength: float = Field(1.0, gt=0, le=10)

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        """A logistic loss."""
        margins = float(self.strength) * (pairs.chosen - pairs.rejected)
        return PreferenceLoss.of(torch.nn.functional.softplus(-margins), pairs.chosen, pairs.rejected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tune": ["robust"]},
            r"tune\.options\.0: expected a continuous option of f_dpo: beta, label_smoothing, ",
        ),
        ({"tune": ["betta"]}, r"found betta.*beta\?"),
        ({"tune": ["beta", "beta"]}, "expected each option once"),
        ({"tune": []}, "at least 1 item"),
        ({"tune": {"options": ["beta"], "rank": 0}}, r"tune\.rank: expected greater than or equal to 1"),
        (
            {"tune": ["sft_weight"]},
            r"tune\.options\.0: sft_weight moves by factors, so it must start above 0; found 0",
        ),
        ({"tune": ["beta"], "lora": None}, "tune: tuning needs lora"),
        ({"tune": ["beta"], "lora": {"nested": {}}}, r"tune: expected without lora\.nested"),
        ({"tune": ["beta"], "data": {"train": "t.jsonl"}}, r"tune: tuning needs data\.validation"),
        ({"tune": ["beta"], "terms": [{"type": "thresholds"}]}, "tune: expected without terms"),
        ({"tune": ["beta"], "method": {"type": "supervised"}}, "tune: expected a method on preference pairs"),
        (
            {"tune": ["strength"], "method": {"type": "tests.methods.test_tuning:Whole"}},
            "cannot take a strength for each row",
        ),
        (
            {"tune": ["alpha"], "method": {"type": "f_dpo", "divergence": "alpha_divergence", "alpha": 0.5}},
            "expected a continuous option",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(**changes)


def test_a_list_is_short_for_the_options() -> None:
    found = recipe(method={"type": "simpo"}, tune=["beta", "margin"])
    assert found.tune is not None
    assert found.tune.options == ["beta", "margin"]
    assert found.saved_rank == 20
    assert Recipe.parse(found.model_dump(mode="json")) == found


def test_a_job_tunes_too_and_is_refused_at_its_own_place() -> None:
    job = job_of("dpo", tune=["beta"])
    assert job.recipe.tune is not None
    assert job.recipe.tune.options == ["beta"]
    with pytest.raises(
        RecipeError, match=r"^method\.dpo\.hyperparameters\.tune\.options\.0: expected a continuous"
    ):
        job_of("dpo", tune=["gamma"])
