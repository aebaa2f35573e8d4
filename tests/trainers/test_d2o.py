"""D2OTrainer: the exact gradient, the effect of training, samples and references, and failures."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from alignkit.errors import DataError, ModelError
from alignkit.losses import d2o_loss
from alignkit.trainers import D2OConfig, D2OTrainer
from tests.quiet import QUIET
from tests.tiny import build_tiny_model

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model(tmp_path_factory.mktemp("other"), seed=9)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """At this size more threads cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(count: int = 8, samples: int | None = 5) -> Dataset:
    """Rows with samples of many lengths; with `samples=None` they have to be drawn."""
    return Dataset.from_list(
        [
            {
                "prompt": f"Question {index}?",
                "rejected": "no, never " * (index % 3 + 1),
            }
            | (
                {}
                if samples is None
                else {"samples": [f"yes {i:02} " * ((i + index) % 4 + 1) for i in range(samples)]}
            )
            for index in range(count)
        ]
    )


def config(folder: Path, **options: Any) -> D2OConfig:
    return D2OConfig(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 4,
            "learning_rate": 1e-3,
            "max_steps": 3,
            "logging_steps": 1,
            **QUIET,
            "beta": 0.5,
            "alpha": 0.3,
            "max_length": 128,
            "max_tokens": 6,
            "samples_per_prompt": 3,
            "sequence_batch_size": 3,
            **options,
        }
    )


def build(
    model_dir: Path,
    args: D2OConfig,
    train: Dataset | None = None,
    evaluation: Dataset | None = None,
    peft: LoraConfig | None = LORA,
    notices: list[str] | None = None,
    packing: bool | None = False,
    model: Any = None,
) -> D2OTrainer:
    torch.manual_seed(0)
    return D2OTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir) if model is None else model,
        args=args,
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=rows() if train is None else train,
        eval_dataset=evaluation,
        peft_config=copy.deepcopy(peft),
        report=(notices if notices is not None else []).append,
        packing=packing,
    )


def losses(trainer: D2OTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def logged(trainer: D2OTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def gradients(trainer: D2OTrainer) -> list[Tensor]:
    found = [value.grad for value in trainer.model.parameters() if value.requires_grad]
    grads = [value.clone() for value in found if value is not None]
    assert len(grads) == len(found)
    trainer.model.zero_grad()
    return grads


def shaken(trainer: D2OTrainer) -> D2OTrainer:
    """The trainer with weights moved away from the references, so that gradients differ; ready for a manual step."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in trainer.model.parameters():
            if value.requires_grad:
                value.add_(0.05 * torch.randn(value.shape, generator=generator))
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"logps": "mean", "sequence_batch_size": 1},
        {"rejected_floor": -0.2, "sequence_batch_size": 100},
        {"gradient_checkpointing": True},
    ],
    ids=["sum", "mean", "floor", "checkpointed"],
)
def test_a_steps_gradient_is_that_of_the_loss_in_one_graph(
    tmp_path: Path, model_dir: Path, peft: LoraConfig | None, options: dict[str, Any]
) -> None:
    uneven = rows().map(lambda row, index: {"samples": row["samples"][: index + 1]}, with_indices=True)
    trainer = shaken(build(model_dir, config(tmp_path, **options), uneven, peft=peft))
    inputs = {"row": torch.tensor([0, 2, 5])}
    stepped = trainer.training_step(trainer.model, inputs)
    in_parts = gradients(trainer)
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    whole = gradients(trainer)
    torch.testing.assert_close(stepped, loss.detach())
    difference = math.fsum(float((a - b).square().sum()) for a, b in zip(in_parts, whole, strict=True))
    norm = math.fsum(float(b.square().sum()) for b in whole)
    assert norm > 0
    assert math.sqrt(difference) <= 1e-5 * math.sqrt(norm)


def forwards_of(
    trainer: D2OTrainer, inputs: dict[str, Tensor]
) -> tuple[list[tuple[int, bool]], list[Tensor]]:
    """(tokens, with gradient) of each forward of a step, and the step's gradients."""
    found: list[tuple[int, bool]] = []

    def count(_: Any, args: Any) -> None:
        found.append((args[0].numel(), torch.is_grad_enabled()))

    handle = trainer.model.get_input_embeddings().register_forward_pre_hook(count)
    trainer.training_step(trainer.model, dict(inputs))
    handle.remove()
    return found, gradients(trainer)


def distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference of two gradients, as a share of the second one's."""
    pairs = list(zip(found, expected, strict=True))
    norm = math.fsum(float(b.square().sum()) for _, b in pairs)
    assert norm > 0
    return math.sqrt(math.fsum(float((a - b).square().sum()) for a, b in pairs) / norm)


@pytest.fixture(scope="module")
def two_passes(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> tuple[list[tuple[int, bool]], list[Tensor]]:
    """A padded step in two passes: its forwards and its gradients."""
    trainer = shaken(build(model_dir, config(tmp_path_factory.mktemp("two"))))
    return forwards_of(trainer, {"row": torch.tensor([0, 2, 5])})


@pytest.mark.parametrize(
    ("size", "packing", "forwards"),
    [(6, False, 3), (12, False, 2), (18, False, 1), (4, True, 3), (6, True, 2), (9, True, 1)],
)
def test_answers_that_fit_into_a_forward_train_in_one_graph(
    tmp_path: Path, model_dir: Path, two_passes: Any, size: int, forwards: int, *, packing: bool
) -> None:
    theirs, expected = two_passes
    assert [with_gradient for _, with_gradient in theirs] == [False] * 6 + [True] * 6
    trainer = shaken(build(model_dir, config(tmp_path, sequence_batch_size=size), packing=packing))
    ours, found = forwards_of(trainer, {"row": torch.tensor([0, 2, 5])})
    assert [with_gradient for _, with_gradient in ours] == [True] * forwards
    assert distance(found, expected) <= 1e-5
    if packing:
        assert sum(tokens for tokens, _ in ours) < 0.35 * sum(tokens for tokens, _ in theirs)


@pytest.mark.parametrize("options", [{}, {"logps": "mean", "gradient_checkpointing": True}])
def test_two_packed_passes_give_the_same_gradient(
    tmp_path: Path, model_dir: Path, options: dict[str, Any]
) -> None:
    inputs = {"row": torch.tensor([0, 2, 5])}
    args = config(tmp_path, sequence_batch_size=3, **options)
    padded, expected = forwards_of(shaken(build(model_dir, args)), inputs)
    packed, found = forwards_of(shaken(build(model_dir, args, packing=True)), inputs)
    assert {with_gradient for _, with_gradient in packed} == {False, True}
    assert distance(found, expected) <= 1e-5
    assert sum(tokens for tokens, _ in packed) < 0.75 * sum(tokens for tokens, _ in padded)


def test_a_packed_run_logs_what_the_padded_run_logs(tmp_path: Path, model_dir: Path) -> None:
    names = {
        "loss",
        "eval_loss",
        "logps/samples",
        "logratios/rejected",
        "rewards/margins",
        "entropy",
        "num_tokens",
    }
    options = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 3, "optim": "sgd"}

    def logs(*, packing: bool) -> list[dict[str, float]]:
        args = config(tmp_path / str(packing), sequence_batch_size=8, **options)
        trainer = build(model_dir, args, evaluation=rows(3), packing=packing)
        trainer.train()
        return trainer.state.log_history

    for found, expected in zip(logs(packing=True), logs(packing=False), strict=True):
        assert found.keys() == expected.keys()
        for name in names & found.keys():
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_a_model_that_cannot_be_packed_is_reported_or_refused(tmp_path: Path, model_dir: Path) -> None:
    notices: list[str] = []
    args = config(tmp_path)
    eager = AutoModelForCausalLM.from_pretrained(model_dir, attn_implementation="eager")
    build(model_dir, args, peft=None, notices=notices, packing=None, model=eager)
    assert (
        "Batches are padded, not packed: its attention is eager, expected sdpa or flex_attention" in notices
    )
    with pytest.raises(ModelError, match=r"training\.packing: LlamaForCausalLM cannot train on packed rows"):
        build(model_dir, args, peft=None, packing=True, model=eager)


def test_bf16_autocast_does_not_lose_the_gradient(tmp_path: Path, model_dir: Path) -> None:
    """A weight that autocast has cached without gradient would leave the second pass without one."""
    trainer = shaken(build(model_dir, config(tmp_path, bf16=True)))
    trainer.model = trainer.accelerator.prepare_model(trainer.model)
    inputs = {"row": torch.tensor([0, 2])}
    trainer.training_step(trainer.model, inputs)
    in_parts = torch.cat([value.flatten() for value in gradients(trainer)])
    trainer.compute_loss(trainer.model, inputs).backward()
    whole = torch.cat([value.flatten() for value in gradients(trainer)])
    assert torch.nn.functional.cosine_similarity(in_parts, whole, dim=0) > 0.999


def test_accumulated_steps_are_one_large_step(tmp_path: Path, model_dir: Path) -> None:
    options = {"max_steps": 2, "seed": 1}
    one = build(model_dir, config(tmp_path / "a", per_device_train_batch_size=4, **options))
    two = build(
        model_dir,
        config(tmp_path / "b", per_device_train_batch_size=2, gradient_accumulation_steps=2, **options),
    )
    one.train()
    two.train()
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_memory_for_the_backward_does_not_grow_with_the_samples(tmp_path: Path, model_dir: Path) -> None:
    def most_saved(samples: int) -> int:
        trainer = build(model_dir, config(tmp_path / str(samples)), rows(2, samples))
        trainer.current_gradient_accumulation_steps = 1
        now, most = 0, 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal now, most
            now += tensor.numel()
            most = max(most, now)
            return tensor

        backward = trainer.accelerator.backward

        def counted(*args: Any, **kwargs: Any) -> None:
            nonlocal now
            backward(*args, **kwargs)
            now = 0

        trainer.accelerator.backward = counted
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.training_step(trainer.model, {"row": torch.tensor([0, 1])})
        return most

    assert most_saved(32) <= 1.05 * most_saved(4)


def test_one_sample_is_trls_dpo(tmp_path: Path, model_dir: Path) -> None:
    same = {"beta": 0.4, "max_length": 128}
    data = rows(samples=1)
    mine = build(model_dir, config(tmp_path / "a", alpha=0.4, **same), data)
    mine.train()
    shared = config(tmp_path / "b")
    theirs = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir),
        args=DPOConfig(
            **{name: getattr(shared, name) for name in ("per_device_train_batch_size", "learning_rate")},
            output_dir=str(tmp_path / "b"),
            max_steps=3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
            **same,
        ),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        train_dataset=Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": row["prompt"]}],
                    "chosen": [{"role": "assistant", "content": row["samples"][0]}],
                    "rejected": [{"role": "assistant", "content": row["rejected"]}],
                }
                for row in data
            ]
        ),
        peft_config=copy.deepcopy(LORA),
    )
    theirs.train()
    # LoRA starts from other random numbers, so only the first losses, of the reference itself, need be equal
    assert losses(mine)[0] == pytest.approx(losses(theirs)[0], rel=1e-5) == pytest.approx(math.log(2))


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_that_of_log_probs_by_transformers(
    tmp_path: Path, model_dir: Path, other_dir: Path, peft: LoraConfig | None, reduction: str
) -> None:
    options = {"rejected_reference": str(other_dir), "logps": reduction}
    trainer = shaken(build(model_dir, config(tmp_path, **options), rows(3), peft=peft))
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    first, second = (AutoModelForCausalLM.from_pretrained(path) for path in (model_dir, other_dir))

    def logp(model: Any, prompt: str, answer: str) -> Tensor:
        begin = [{"role": "user", "content": prompt}]
        start = len(tokenizer.apply_chat_template(begin, add_generation_prompt=True)["input_ids"])
        whole = [*begin, {"role": "assistant", "content": answer}]
        ids = torch.tensor([tokenizer.apply_chat_template(whole)["input_ids"]])
        with torch.no_grad():
            scores = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        tokens = scores.gather(1, ids[0, start:, None]).squeeze(1)
        return tokens.sum() if reduction == "sum" else tokens.mean()

    def all_logps(model: Any, answers: str) -> Tensor:
        return torch.stack(
            [
                torch.stack([logp(model, row["prompt"], one) for one in row["samples"]])
                if answers == "samples"
                else logp(model, row["prompt"], row["rejected"])
                for row in rows(3)
            ]
        )

    trainer.model.eval()
    expected = d2o_loss(
        all_logps(trainer.model, "samples"),
        all_logps(first, "samples"),
        all_logps(trainer.model, "rejected"),
        all_logps(second, "rejected"),
        beta=0.5,
        alpha=0.3,
    ).losses.mean()
    with torch.no_grad():
        found = trainer.compute_loss(trainer.model, {"row": torch.arange(3)})
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_training_unlearns_the_dispreferred_answer_and_keeps_the_samples(
    tmp_path: Path, model_dir: Path
) -> None:
    args = config(tmp_path, max_steps=16, learning_rate=2e-3, eval_strategy="steps", eval_steps=16)
    trainer = build(model_dir, args, rows(8), rows(5))
    before = trainer.evaluate()
    trainer.train()
    after = trainer.state.log_history[-2]
    assert losses(trainer)[-1] < losses(trainer)[0]
    assert after["eval_loss"] < before["eval_loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert after["eval_logps/rejected"] < before["eval_logps/rejected"] - 1
    assert after["eval_logratios/samples"] >= -0.1
    assert after["eval_rewards/accuracies"] == 1.0
    assert after["eval_rewards/margins"] == pytest.approx(
        after["eval_rewards/samples"] - after["eval_rewards/rejected"], abs=1e-4
    )


def test_negatives_only_collapse_and_the_samples_prevent_it(tmp_path: Path, model_dir: Path) -> None:
    """Answers share their language: without the anchor (beta = 0) all of it goes down with the dispreferred one."""
    alike = Dataset.from_list(
        [
            {
                "prompt": f"What is the sky on day {day}?",
                "rejected": "the sky is a green lie",
                "samples": [f"the sky is {colour}" for colour in ("blue", "grey", "clear", "a bright blue")],
            }
            for day in range(6)
        ]
    )

    def sample_ratio(beta: float) -> float:
        args = config(tmp_path / str(beta), beta=beta, max_steps=20, learning_rate=2e-3)
        trainer = build(model_dir, args, alike)
        trainer.train()
        assert logged(trainer, "logratios/rejected")[-1] < -1
        return logged(trainer, "logratios/samples")[-1]

    negatives_only, with_samples = sample_ratio(0.0), sample_ratio(0.5)
    assert negatives_only < -5
    assert with_samples > 0


def test_the_floor_ends_the_run_away(tmp_path: Path, model_dir: Path) -> None:
    def lowest(floor: float | None) -> D2OTrainer:
        args = config(tmp_path / str(floor), max_steps=25, learning_rate=3e-3, beta=0.1, rejected_floor=floor)
        trainer = build(model_dir, args, rows(4))
        trainer.train()
        return trainer

    free, held = lowest(None), lowest(-4.0)
    assert min(logged(free, "logratios/rejected")) < 2 * min(logged(held, "logratios/rejected"))
    assert set(logged(free, "rejected_below_floor")) == {0.0}
    assert logged(held, "rejected_below_floor")[-1] > 0


def test_metrics_count_items_and_tokens(tmp_path: Path, model_dir: Path) -> None:
    uneven = rows(5).map(lambda row, index: {"samples": row["samples"][: index + 1]}, with_indices=True)
    trainer = shaken(build(model_dir, config(tmp_path), rows(), uneven))
    whole = trainer.evaluate()
    trainer.args.per_device_eval_batch_size = 5  # one batch instead of 4 + 1
    single = trainer.evaluate()
    for name in ("logps/rejected", "logratios/samples", "rewards/margins", "entropy", "samples"):
        assert whole[f"eval_{name}"] == pytest.approx(single[f"eval_{name}"], rel=1e-4), name
    assert whole["eval_samples"] == 3.0


def test_a_set_given_to_evaluate_is_made_ready_too(tmp_path: Path, model_dir: Path) -> None:
    trainer = shaken(build(model_dir, config(tmp_path), rows()))
    found = trainer.evaluate(rows(3, None), metric_key_prefix="later")
    assert found["later_loss"] != pytest.approx(math.log(2), abs=1e-3)
    assert [len(row.samples) for row in trainer.rows.rows[8:]] == [3] * 3
    assert all(row.ref_rejected < 0 for row in trainer.rows.rows[8:])


def test_samples_are_drawn_once_and_found_again(tmp_path: Path, model_dir: Path) -> None:
    first = build(model_dir, config(tmp_path), rows(4, None), rows(2, None))
    drawn = [[one.ids for one in row.samples] for row in first.rows.rows]
    assert [len(samples) for samples in drawn] == [3] * 6
    files = sorted((tmp_path / "samples").iterdir())
    assert {path.name.split("-")[0] for path in files} == {"samples", "scores"}
    assert not list((tmp_path / "samples").glob(".*"))
    lines = [json.loads(line) for path in files[:2] for line in path.read_text().splitlines()]
    assert {line["prompt"] for line in lines} >= {"Question 0?"}
    again = build(model_dir, config(tmp_path), rows(4, None), rows(2, None))
    assert [[one.ids for one in row.samples] for row in again.rows.rows] == drawn
    assert sorted((tmp_path / "samples").iterdir()) == files
    assert [row.ref_samples for row in again.rows.rows] == [row.ref_samples for row in first.rows.rows]
    build(model_dir, config(tmp_path, temperature=0.7), rows(4, None), rows(2, None))
    assert len(list((tmp_path / "samples").glob("samples-*"))) == 4


def test_an_instruction_is_there_for_drawing_only(tmp_path: Path, model_dir: Path) -> None:
    pool = ["Be kind.", "Be brief."]
    trainer = build(model_dir, config(tmp_path, instruction_pool=pool), rows(2, None))
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    row = trainer.rows.rows[0]
    asked = [tokenizer.decode(ids) for ids in row.prompt.renderings]
    assert ["Be kind.\n\nQuestion 0?" in asked[0], "Be brief.\n\nQuestion 0?" in asked[1]] == [True, True]
    for sample in row.samples:
        text = tokenizer.decode(sample.ids)
        assert "Be " not in text[: text.index("assistant")]
        assert sample.ids[: sample.prompt_length] == row.begin


def test_online_draws_from_the_policy_and_scores_by_the_refreshed_reference(
    tmp_path: Path, model_dir: Path
) -> None:
    args = config(
        tmp_path,
        max_steps=5,
        learning_rate=5e-3,
        resample_every=2,
        ref_refresh_every=2,
        resample_warmup_steps=2,
    )
    trainer = build(model_dir, args, rows(4, None), rows(2, None))
    first = [row.samples for row in trainer.rows.rows]
    trainer.train()
    ratios = logged(trainer, "logratios/rejected")
    assert ratios[0] == pytest.approx(0, abs=1e-5)
    assert ratios[1] < -1e-3
    assert ratios[2] == pytest.approx(0, abs=1e-4)  # refreshed before the third step and before the fifth
    assert ratios[4] == pytest.approx(0, abs=1e-4)
    now = [row.samples for row in trainer.rows.rows]
    assert all(a != b for a, b in zip(now[:4], first[:4], strict=True))
    assert now[4:] == first[4:]  # held-out samples stay
    names = [path.name for path in (tmp_path / "samples").glob("reference-*")]
    assert names == ["reference-4.safetensors"]


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
def test_without_a_refresh_the_first_reference_does_not_change(
    tmp_path: Path, model_dir: Path, peft: LoraConfig | None
) -> None:
    args = config(tmp_path, max_steps=3, learning_rate=5e-3, resample_every=2)
    trainer = build(model_dir, args, rows(4, None), peft=peft)
    before = [row.ref_rejected for row in trainer.rows.rows]
    trainer.train()
    assert [row.ref_rejected for row in trainer.rows.rows] == pytest.approx(before, abs=1e-4)
    base = build(model_dir, config(tmp_path / "base"), rows(4, None))
    numbers = list(range(4))
    for mine, theirs in zip(trainer.rows.rows, base.rows.rows, strict=True):
        theirs.samples = mine.samples
    base.score(numbers)
    for mine, theirs in zip(trainer.rows.rows, base.rows.rows, strict=True):
        assert mine.ref_samples == pytest.approx(theirs.ref_samples, abs=1e-4)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, model_dir: Path) -> None:
    options = {
        "learning_rate": 5e-3,
        "resample_every": 3,
        "ref_refresh_every": 2,
        "save_strategy": "steps",
        "save_steps": 5,
        "max_steps": 8,
    }
    whole = build(model_dir, config(tmp_path, **options), rows(6, None))
    whole.train()
    (tmp_path / "samples" / "reference-6.safetensors").unlink()
    for name in ("reference-4.safetensors",):
        assert not (tmp_path / "samples" / name).exists()
    again = build(model_dir, config(tmp_path, **options), rows(6, None))
    notices: list[str] = []
    again.report = again.references._report = notices.append
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert any("reference-4.safetensors is missing" in notice for notice in notices)
    assert losses(again)[-2:] == pytest.approx(losses(whole)[-2:], rel=1e-4)


def test_other_models_are_references(tmp_path: Path, model_dir: Path, other_dir: Path) -> None:
    trainer = build(model_dir, config(tmp_path / "a", sample_reference=str(other_dir)), rows(3, None))
    other = build(other_dir, config(tmp_path / "b"), rows(3, None))
    for mine, theirs in zip(trainer.rows.rows, other.rows.rows, strict=True):
        theirs.samples = mine.samples
    other.score([0, 1, 2])
    for mine, theirs in zip(trainer.rows.rows, other.rows.rows, strict=True):
        assert mine.ref_samples == pytest.approx(theirs.ref_samples, abs=1e-4)
        assert mine.ref_rejected != pytest.approx(theirs.ref_rejected, abs=1e-2)
    missing = str(tmp_path / "missing")
    with pytest.raises(ModelError, match=f"reference model '{missing}' cannot be loaded"):
        build(model_dir, config(tmp_path / "c", rejected_reference=missing), rows(3))


def test_a_reference_that_is_not_finite_stops_with_step_and_rows(tmp_path: Path, model_dir: Path) -> None:
    broken = AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        broken.model.embed_tokens.weight.fill_(math.nan)
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(
        FloatingPointError, match=r"not finite at step 0, rows \[0, 1\], which begin: \['Question"
    ):
        build(model_dir, config(tmp_path, rejected_reference=str(tmp_path / "broken")), rows(2))


def test_a_loss_that_is_not_finite_stops_with_step_and_rows(tmp_path: Path, model_dir: Path) -> None:
    trainer = build(model_dir, config(tmp_path))
    trainer.rows.rows[1].ref_rejected = math.nan
    with pytest.raises(
        FloatingPointError, match=r"not finite at step 0, rows \[1\] of the batch, which begin"
    ):
        trainer.compute_loss(trainer.model, {"row": torch.tensor([0, 1])})


def test_a_batch_without_a_token_that_counts_is_a_differentiable_zero(
    tmp_path: Path, model_dir: Path
) -> None:
    trainer = shaken(build(model_dir, config(tmp_path), rows(2)))
    for row in trainer.rows.rows:
        for sequence in [row.rejected, *row.samples]:
            object.__setattr__(sequence, "loss_spans", ())
    trainer.score([0, 1])
    loss = trainer.training_step(trainer.model, {"row": torch.tensor([0, 1])})
    assert float(loss) == pytest.approx(math.log(2))
    assert all(float(value.abs().max()) == 0 for value in gradients(trainer))


class Canned:
    """A sampler that gives to every prompt the same answers in turn."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.ids = [tokenizer(text)["input_ids"] for text in texts]

    def complete(self, prompts: Any, **options: Any) -> list[list[int]]:
        return [self.ids[index % len(self.ids)] for index in range(len(prompts))]


def test_rows_left_without_samples_are_dropped_and_none_left_is_an_error(
    tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    texts = ["no, never"]
    monkeypatch.setattr(
        "alignkit.trainers.d2o_preparation.LocalSampler", lambda *_, **__: Canned(tokenizer, texts)
    )
    notices: list[str] = []
    trainer = build(model_dir, config(tmp_path), rows(4, None), notices=notices)
    assert list(trainer.train_dataset["row"]) == [1, 2]  # their dispreferred answers are longer
    assert any(
        "2 of 4 rows have no sample left, such as those that begin ['Question 0?', 'Question 3?']; they are dropped"
        in one
        for one in notices
    )
    assert any("Samples left out:" in one and "equal to the dispreferred answer" in one for one in notices)
    texts[0] = "no, never"
    with pytest.raises(DataError, match=r"train: 1 of 1 rows have no sample left, .* raise temperature"):
        build(model_dir, config(tmp_path / "b"), rows(1, None))


def test_rows_that_max_length_leaves_no_room_are_dropped(tmp_path: Path, model_dir: Path) -> None:
    long = Dataset.from_list([{"prompt": "x" * 300, "rejected": "no", "samples": ["yes"]}])
    notices: list[str] = []
    both = Dataset.from_list([*long, *rows(2)])
    trainer = build(model_dir, config(tmp_path), both, notices=notices)
    assert len(trainer.train_dataset) == 2
    assert notices[0] == "train: 1 rows dropped: max_length leaves no room for an answer"
    assert notices[1:] == []
    with pytest.raises(DataError, match="train: no row is left"):
        build(model_dir, config(tmp_path), long)


def test_a_bad_row_is_named(tmp_path: Path, model_dir: Path) -> None:
    bad = Dataset.from_list([{"prompt": "a", "rejected": "b", "samples": []}])
    with pytest.raises(DataError, match="train, row 1: /samples: expected an array of answers"):
        build(model_dir, config(tmp_path), bad)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"samples_per_prompt": 0}, "samples_per_prompt: expected greater than or equal to 1, found 0"),
        ({"beta": -0.1}, "beta: expected greater than or equal to 0, found -0.1"),
        ({"alpha": math.nan}, "alpha: expected a finite number, found nan"),
        ({"temperature": 0}, "temperature: expected greater than 0"),
        ({"top_p": 1.5}, "top_p: expected less than or equal to 1, found 1.5"),
        ({"rejected_floor": 1.0}, "rejected_floor: expected less than 0, found 1.0"),
        ({"logps": "max"}, "logps: expected 'sum' or 'mean', found 'max'"),
        ({"loss_type": ["ipo"]}, "loss_type"),
        (
            {"disable_dropout": False},
            "disable_dropout=False is not an option of D2O: the gradient is exact only",
        ),
        ({"sync_ref_model": True}, "ref_refresh_every"),
        (
            {"ref_refresh_every": 2, "sample_reference": "a"},
            "ref_refresh_every cannot be combined with sample_reference",
        ),
    ],
)
def test_options_without_meaning_are_refused(tmp_path: Path, option: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **option)
