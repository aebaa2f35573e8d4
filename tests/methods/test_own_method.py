"""A user's own method: a class in this file, named by its import path, is enough for a whole run."""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
import torch.nn.functional as F
from pydantic import Field
from transformers import AutoTokenizer
from typer.testing import CliRunner

from alignkit import estimate, train
from alignkit.cli import app
from alignkit.data import render
from alignkit.errors import RecipeError
from alignkit.losses import PairLogps, PreferenceLoss
from alignkit.methods import PairMethod
from alignkit.options import InJobs
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from tests.preference import row, write_pairs
from tests.tiny import build_tiny_model

PATH = f"{__name__}:Margin"


class Margin(PairMethod):
    """Pairs whose mean log-probs must differ by a margin, without a reference."""

    uses_reference: ClassVar[bool] = False

    beta: Annotated[float, InJobs(le=20, auto=True)] = Field(2.0, gt=0, le=100, description="strength")
    margin: float = Field(0.5, ge=0, le=100, description="by which the chosen answer must lead")

    def loss(self, pairs: PairLogps) -> PreferenceLoss:
        """L = -log sigma(beta (p_w - p_l) - margin), p = log pi(y|x) / |y|."""
        chosen, rejected, *_ = pairs.averaged()
        chosen, rejected = self.beta * chosen, self.beta * rejected
        return PreferenceLoss(
            -F.logsigmoid(chosen - rejected - self.margin), chosen.detach(), rejected.detach()
        )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl")
    write_pairs(path / "validation.jsonl", count=4, start=100)
    return path


def recipe(workplace: Path, output: str, **method: Any) -> Path:
    values = {
        "model": {"path": str(workplace / "model")},
        "data": {"train": str(workplace / "train.jsonl"), "validation": str(workplace / "validation.jsonl")},
        "method": {"type": PATH, **method},
        "training": {
            "max_steps": 2,
            "batch_size": 4,
            "learning_rate": 5e-3,
            "lr_scheduler": "constant",
            "save_steps": 1,
            "eval_steps": 1,
        },
        "collapse_guard": None,
        "output_dir": str(workplace / output),
    }
    path = workplace / f"{output}.yaml"
    path.write_text(Recipe.parse(values).to_yaml())
    return path


@pytest.fixture(scope="module")
def finished(workplace: Path) -> RunFolder:
    assert train.main([str(recipe(workplace, "finished", margin=0.25))]) == 0
    return RunFolder(workplace / "finished")


def test_a_run_of_it_trains_evaluates_and_saves(finished: RunFolder) -> None:
    result = finished.read_result()
    assert result is not None
    assert (result["status"], result["steps"]) == ("succeeded", 2)
    assert "valid_rewards_accuracies" in result["metrics"]
    assert "valid_logratios_chosen" not in result["metrics"]  # there is no reference to take ratios to
    assert (finished.adapter / "adapter_model.safetensors").is_file()


def test_the_runs_recipe_names_it_and_is_read_again(finished: RunFolder) -> None:
    again = Recipe.load(finished.recipe)
    assert isinstance(again.method, Margin)
    assert (again.method.type, again.method.margin) == (PATH, 0.25)


def test_a_run_of_it_resumes_to_the_same_weights(workplace: Path, finished: RunFolder) -> None:
    path = recipe(workplace, "resumed", margin=0.25)
    assert train.main([str(path), "training.max_steps=1"]) == 0
    assert train.main([str(path), "--resume"]) == 0
    weights = "adapter/adapter_model.safetensors"
    assert (workplace / "resumed" / weights).read_bytes() == (finished.path / weights).read_bytes()


def test_another_option_of_it_is_another_run(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(workplace, "changed", margin=0.25)
    assert train.main([str(path), "training.max_steps=1"]) == 0
    assert train.main([str(path), "--resume", "method.margin=0.75"]) == 1
    assert "method.margin was 0.25, now 0.75" in capsys.readouterr().err


def test_its_options_are_checked_by_their_declaration(workplace: Path) -> None:
    with pytest.raises(RecipeError, match=r"method\.margin: expected greater than or equal to 0, found -1"):
        recipe(workplace, "refused", margin=-1)
    with pytest.raises(RecipeError, match=r"method\.gamma: unknown key"):
        recipe(workplace, "refused", gamma=1)


def test_check_preview_and_render_take_its_name(workplace: Path) -> None:
    data, model = str(workplace / "train.jsonl"), str(workplace / "model")
    checked = CliRunner().invoke(app, ["data", "check", data, "--model", model, "--method", PATH])
    assert checked.exit_code == 0, checked.output
    shown = CliRunner().invoke(app, ["data", "preview", data, "--model", model, "--method", PATH])
    assert shown.exit_code == 0, shown.output
    assert "chosen" in shown.output
    sequences = render(row(1), AutoTokenizer.from_pretrained(model), method=PATH)
    assert [sequence.name for sequence in sequences] == ["chosen", "rejected"]


def test_its_estimate_has_no_reference_in_it(workplace: Path) -> None:
    own, f_dpo = (
        Recipe.load(recipe(workplace, "estimated"), [f"method={json.dumps(method)}", "lora=null"])
        for method in ({"type": PATH}, {"type": "f_dpo"})
    )
    assert own.method.plan(own).models.keys() == {"policy"}
    assert f_dpo.method.plan(f_dpo).models.keys() == {"policy", "reference"}
    smaller, larger = (
        estimate.estimate(run, estimate.lengths_of(run), device="cpu", count=1, stage="single")
        for run in (own, f_dpo)
    )
    assert smaller.memory.peak < larger.memory.peak
