"""The collapse guard on runs that are ruined on purpose: a learning rate that no model survives."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit import train
from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder
from alignkit.trainers import FDPOConfig, FDPOTrainer
from alignkit.trainers.scoring import Answer, answer_of, draw, token_logps
from tests.preference import write_pairs
from tests.tiny import build_tiny_model, teach
from tests.trainers.test_f_dpo import LORA, pairs, settings

RUINOUS, SANE = 1.0, 1e-4


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that can say the chosen answers, which the data then prefers."""
    path = tmp_path_factory.mktemp("guard")
    build_tiny_model(path / "model")
    write_pairs(path / "train.jsonl")
    write_pairs(path / "validation.jsonl", count=5, start=100)
    rows = [json.loads(line) for line in (path / "train.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(path / "model")
    texts = [
        tokenizer.apply_chat_template([*row["input"]["messages"], *row["preferred_output"]], tokenize=False)
        for row in rows
    ]
    teach(path / "model", texts)
    return path


def run(workplace: Path, name: str, learning_rate: float, **guard: Any) -> tuple[int, RunFolder]:
    recipe = Recipe.parse(
        {
            "model": {"path": str(workplace / "model")},
            "data": {
                "train": str(workplace / "train.jsonl"),
                "validation": str(workplace / "validation.jsonl"),
                "max_length": 128,
            },
            "method": {"type": "f_dpo"},
            "training": {
                "max_steps": 6,
                "batch_size": 4,
                "learning_rate": learning_rate,
                "lr_scheduler": "constant_with_warmup",
                "warmup_steps": 3,
                "max_grad_norm": 1e6,
                "eval_steps": 1,
            },
            "collapse_guard": {"prompts": 4, "max_new_tokens": 16, **guard},
            "output_dir": str(workplace / name),
        }
    )
    path = workplace / f"{name}.yaml"
    path.write_text(recipe.to_yaml())
    return train.main([str(path)]), RunFolder(workplace / name)


def warnings(folder: RunFolder) -> list[str]:
    events = [json.loads(line) for line in folder.events.read_text().splitlines()]
    return [event["message"] for event in events if event["level"] == "warn"]


def test_a_sound_run_is_not_changed(workplace: Path) -> None:
    status, folder = run(workplace, "sound", SANE)
    assert status == 0
    assert warnings(folder) == []
    result = folder.read_result()
    assert result is not None
    for name in ("reference_logp", "kl", "repetition", "distinct_2", "good_logp"):
        assert f"valid_answers_{name}" in result["metrics"]


def test_the_answers_of_every_evaluation_are_reported_as_text(workplace: Path) -> None:
    lines = (workplace / "sound" / "events.jsonl").read_text().splitlines()
    shown = [event["data"] for event in map(json.loads, lines) if "answers" in event["data"]]
    assert [data["step"] for data in shown] == [0, 1, 2, 3, 4, 5, 6]
    assert all(data["sound"] and data["collapse"] == [] for data in shown)
    validation = json.loads((workplace / "validation.jsonl").read_text().splitlines()[0])
    first = [data["answers"][0] for data in shown]
    assert all(validation["input"]["messages"][-1]["content"] in answer["prompt"] for answer in first)
    assert all(answer["known"] == validation["preferred_output"][0]["content"] for answer in first)
    assert all(len(data["answers"]) == 4 and answer["answer"] for data in shown for answer in data["answers"])


def test_a_collapse_is_warned_about_and_training_continues(workplace: Path) -> None:
    status, folder = run(workplace, "warned", RUINOUS)
    assert status == 0
    assert any("may have collapsed at step" in message for message in warnings(folder))
    assert (folder.read_result() or {})["steps"] == 6
    assert folder.adapter.exists()


def test_stop_ends_it_as_failed_and_leaves_no_model(workplace: Path) -> None:
    status, folder = run(workplace, "stopped", RUINOUS, on_collapse="stop")
    assert status == 1
    result = folder.read_result()
    assert result is not None
    assert result["error"]["code"] == "collapsed"
    assert "fell from" in result["error"]["message"]
    assert not folder.adapter.exists()


def test_rollback_publishes_the_last_sound_checkpoint(workplace: Path) -> None:
    status, folder = run(workplace, "rolled", RUINOUS, on_collapse="rollback")
    assert status == 0
    sound = json.loads(folder.guard.read_text())["sound_steps"][-1]
    assert sound >= 1
    assert any(f"Rolled back to step {sound}" in message for message in warnings(folder))
    published = load_file(folder.adapter / "adapter_model.safetensors")
    kept = load_file(folder.checkpoints / f"checkpoint-{sound}" / "adapter_model.safetensors")
    assert published.keys() == kept.keys()
    assert all(torch.equal(published[name], kept[name]) for name in kept)
    lines = map(json.loads, folder.events.read_text().splitlines())
    losses = [
        data["valid_loss"]
        for line in lines
        if (data := line["data"]).get("step") == sound and "valid_loss" in data
    ]
    assert (folder.read_result() or {})["metrics"]["valid_loss"] == pytest.approx(losses[0], rel=1e-5)


def test_off_means_off(workplace: Path) -> None:
    recipe = Recipe.load(workplace / "sound" / "recipe.yaml", ["collapse_guard=null"])
    assert recipe.collapse_guard is None


@pytest.fixture(scope="module")
def trainer(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> FDPOTrainer:
    config = FDPOConfig(**settings(tmp_path_factory.mktemp("scoring"), learning_rate=0.05, max_steps=2))
    trainer = FDPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(workplace / "model"),
        args=config,
        processing_class=AutoTokenizer.from_pretrained(workplace / "model"),
        train_dataset=pairs(),
        peft_config=LORA,
    )
    trainer.train()
    return trainer


def test_drawn_answers_are_the_policys_and_repeatable(trainer: FDPOTrainer) -> None:
    prompts = [answer_of(row)[0] for row in trainer.train_dataset.select(range(3))]
    before = torch.random.get_rng_state()
    drawn = draw(trainer, prompts, max_new_tokens=12, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    assert trainer.model.training
    assert drawn == draw(trainer, prompts, max_new_tokens=12, seed=3)
    assert drawn != draw(trainer, prompts, max_new_tokens=12, seed=4)
    end = trainer.processing_class.eos_token_id
    assert all(end not in answer.tokens[:-1] and 1 <= len(answer.tokens) <= 12 for answer in drawn)


def test_log_probs_equal_those_of_the_plain_model(trainer: FDPOTrainer, workplace: Path) -> None:
    answers = [Answer([5, 6, 7], [8, 9]), Answer([11], [12, 13, 14, 15])]
    base = AutoModelForCausalLM.from_pretrained(workplace / "model")
    for reference in (False, True):
        found = token_logps(trainer, answers, "reference" if reference else "policy")
        assert found is not None
        model = base if reference else trainer.model
        for answer, logps in zip(answers, found, strict=True):
            ids = torch.tensor([answer.prompt + answer.tokens])
            with torch.no_grad():
                scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
            expected = scores.gather(1, ids[0, 1:, None]).squeeze(1)[len(answer.prompt) - 1 :]
            torch.testing.assert_close(logps, expected, rtol=1e-4, atol=1e-4)


def test_the_answer_of_a_row_of_either_kind() -> None:
    assert answer_of({"prompt_ids": [1, 2], "chosen_ids": [3]}) == ([1, 2], [3])
    assert answer_of({"prompt_ids": [1, 2], "rejected_ids": [3]}) == ([1, 2], [])
    assert answer_of({"input_ids": [1, 2, 3, 4], "labels": [-100, 2, 3, -100]}) == ([1], [2, 3])
    assert answer_of({"input_ids": [1, 2], "labels": [-100, 2]}) == ([1], [2])
