"""PS-KD against whole logits and against supervised fine-tuning, its schedule, and a resume across a refresh."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import is_peft_model
from peft import LoraConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig

from alignkit.data.tokens import IGNORED
from alignkit.errors import ModelError
from alignkit.kernels.model_head import HeadWeights
from alignkit.methods import PSKD, Supervised
from alignkit.trainers import PSKDTrainer, SupervisedTrainer
from alignkit.trainers.ps_kd import PAST, PastStates, _with_past
from tests.distillation import settings, tokenised
from tests.jobs import job_of, recipe_of
from tests.tiny import build_tiny_model

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
BOTH = pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


def made(kind: Any, folder: Path, model_dir: Path, peft: Any, method: Any, **options: Any) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = tokenised(tokenizer, 6)
    return kind(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=SFTConfig(**settings(folder, **{"learning_rate": 0.02, "optim": "sgd", **options})),
        method=method,
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=rows.select(range(3)),
        peft_config=peft,
    )


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry and "loss" in entry]


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer._trained()}


@BOTH
def test_a_step_is_that_of_whole_logits_and_leaves_the_weights_alone(
    tmp_path: Path, model_dir: Path, peft: Any
) -> None:
    trainer = made(PSKDTrainer, tmp_path, model_dir, peft, PSKD(final_weight=0.6, refresh_steps=2))
    trainer.refresh()
    past = copy.deepcopy(trainer.model)
    with torch.no_grad():
        for _, value in trainer._trained():
            value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    trainer.state.global_step, trainer.state.max_steps = 3, 5  # one of two refreshes is done: a = 0.3
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    trainer.model.train()
    before = weights(trainer)
    loss = trainer.compute_loss(trainer.model, dict(batch))
    loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in trainer._trained())
    assert trainer.model.training

    def logits(model: Any) -> Tensor:
        # Not by its forward: that was patched, and is still the original's.
        model = model.get_base_model() if is_peft_model(model) else model
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        whole: Tensor = model.lm_head(model.model(**inputs).last_hidden_state)
        return whole[:, :-1][valid]

    valid = batch["labels"][:, 1:] != IGNORED
    exact = copy.deepcopy(trainer.model)
    exact.zero_grad()
    targets = logits(past.eval()).softmax(dim=1).detach()
    labels, own = batch["labels"][:, 1:][valid], logits(exact)
    expected = 0.7 * cross_entropy(own, labels) + 0.3 * cross_entropy(own, targets)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    theirs = dict(exact.named_parameters())
    for name, value in trainer._trained():
        torch.testing.assert_close(value.grad, theirs[name].grad, rtol=1e-3, atol=1e-5)


def test_where_the_past_is_the_present_only_the_labels_pull() -> None:
    """Gradient by the logits (1 - a)(q - e_y), and the decomposition of the loss."""
    make = torch.Generator().manual_seed(2)
    hidden = torch.randn(1, 5, 4, generator=make, dtype=torch.float64).requires_grad_()
    weight = torch.randn(11, 4, generator=make, dtype=torch.float64)
    labels = torch.tensor([[3, 0, 10, IGNORED, 7]])
    past = PastStates(hidden.detach(), weight, None, 1.0, None)
    found = _with_past(HeadWeights(weight, None, 1.0, None), hidden, labels, past, 0.8)
    found.losses.sum().backward()
    q = (hidden.detach() @ weight.T).softmax(dim=2)
    keep = labels[0] != IGNORED
    entropy = torch.special.entr(q).sum(dim=2)[0]
    nll = -q[0].gather(1, labels[0].clamp(min=0)[:, None])[:, 0].log()
    torch.testing.assert_close(found.losses[0][keep], (0.2 * nll + 0.8 * entropy)[keep])
    one = torch.nn.functional.one_hot(labels[0].clamp(min=0), 11)
    expected = (0.2 * (q[0] - one) @ weight) * keep[:, None]
    assert hidden.grad is not None
    torch.testing.assert_close(hidden.grad[0], expected)
    assert not found.losses[0][3]
    torch.testing.assert_close(found.forward_kl, torch.zeros(1, 5, dtype=torch.float64))


def test_without_a_refresh_it_is_supervised_training(tmp_path: Path, model_dir: Path) -> None:
    runs = [
        made(PSKDTrainer, tmp_path / "0", model_dir, LORA, PSKD(final_weight=0), max_steps=4),
        made(PSKDTrainer, tmp_path / "1", model_dir, LORA, PSKD(refresh_steps=2), max_steps=4),
        made(SupervisedTrainer, tmp_path / "2", model_dir, LORA, Supervised(), max_steps=4),
    ]
    for run in runs:
        run.train()
    none, later, plain = (logged(run, "loss") for run in runs)
    assert none == plain
    assert later[:2] == plain[:2]  # before the first refresh
    assert later[2:] != plain[2:]
    assert logged(runs[0], "past/kl") == []
    assert len(logged(runs[1], "past/kl")) == 2
    assert logged(runs[1], "past/kl")[0] == pytest.approx(0, abs=1e-6)  # right after the refresh
    assert logged(runs[1], "past/kl")[1] > 0


@BOTH
def test_a_resume_across_a_refresh_repeats_the_run(tmp_path: Path, model_dir: Path, peft: Any) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 5}
    method = PSKD(refresh_steps=2)
    whole = made(PSKDTrainer, tmp_path, model_dir, peft, method, **saving)
    whole.train()
    assert not (tmp_path / "checkpoint-1" / PAST).exists()
    again = made(PSKDTrainer, tmp_path, model_dir, peft, method, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in again._trained())
    assert logged(again, "loss") == logged(whole, "loss")


def test_a_checkpoint_without_its_past_is_refused(tmp_path: Path, model_dir: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    made(PSKDTrainer, tmp_path, model_dir, LORA, PSKD(refresh_steps=1), **saving).train()
    (tmp_path / "checkpoint-1" / PAST).unlink()
    again = made(PSKDTrainer, tmp_path, model_dir, LORA, PSKD(refresh_steps=1), **saving)
    with pytest.raises(ModelError, match=r"checkpoint-1 has no past\.safetensors"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


@pytest.mark.parametrize(
    ("options", "max_steps", "points"),
    [
        ({}, 100, (20, 40, 60, 80)),
        ({}, 24, (4, 9, 14, 19)),
        ({}, 2, (1,)),
        ({}, 1, ()),
        ({"refresh_steps": 3}, 9, (3, 6)),
        ({"refresh_steps": 9}, 9, ()),
        ({"final_weight": 0}, 100, ()),
    ],
)
def test_refreshes_are_spread_over_the_run(
    options: dict[str, Any], max_steps: int, points: tuple[int, ...]
) -> None:
    assert PSKD(**options).refreshes(max_steps) == points


def test_the_weight_grows_with_each_refresh_to_the_final_one() -> None:
    found = [PSKD(final_weight=0.8).weight(step, 10) for step in range(10)]
    assert found == pytest.approx([0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8, 0.8])


def test_a_job_becomes_a_recipe() -> None:
    assert job_of("ps_kd").recipe.method == PSKD()
    given = job_of("ps_kd", final_weight=0.5, refresh_steps=10).recipe.method
    assert given == PSKD(final_weight=0.5, refresh_steps=10)


@pytest.mark.parametrize(("lora", "models"), [({"r": 4}, {"policy"}), (None, {"policy", "teacher"})])
def test_the_past_is_a_second_model_only_where_all_weights_train(lora: Any, models: set[str]) -> None:
    recipe = recipe_of("ps_kd", lora=lora)
    assert set(recipe.method.plan(recipe).models) == models
    assert [issue.path for issue in recipe.method.refusals(recipe, "FSDP")] == ["method.type"]
    assert not list(recipe.method.refusals(recipe, "ZeRO-2"))
