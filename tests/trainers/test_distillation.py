"""Facts that hold for SinKDTrainer and BDKDTrainer: the pair, its data, its checkpoints and its metrics."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignkit.errors import ModelError
from alignkit.kernels.linear_divergence import cost as divergence_cost
from alignkit.kernels.linear_logprob import cost as logprob_cost
from alignkit.trainers import BDKDConfig, BDKDTrainer, SinKDConfig, SinKDTrainer
from alignkit.trainers.pair import TeacherStudentPair
from tests.distillation import batch_of, made, settings, tokenised
from tests.tiny import build_tiny_model

LORA = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
TEACHER_LORA = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
KINDS = [
    pytest.param(SinKDTrainer, SinKDConfig, id="sinkd"),
    pytest.param(BDKDTrainer, BDKDConfig, id="bd_kd"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return build_tiny_model(folder / "student"), build_tiny_model(folder / "teacher", seed=1)


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_accumulation_does_not_change_the_step(
    tmp_path: Path, models: tuple[Path, Path], kind: Any, config: Any
) -> None:
    # Sets of a whole micro-batch are other sets when it is split; each answer's own set is not.
    own = {"mode": "per_sequence"} if config is SinKDConfig else {}
    runs = []
    for micro, accumulation in ((4, 1), (1, 4)):
        args = config(
            **settings(
                tmp_path / str(micro),
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=accumulation,
            ),
            **own,
        )
        trainer = made(kind, args, *models)
        trainer.train()
        runs.append(trainer)
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-5)
    for name, value in weights(runs[0].model.student).items():
        torch.testing.assert_close(value, runs[1].model.student.state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "config"), KINDS)
@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
def test_a_resumed_run_repeats_what_an_unbroken_one_does(
    tmp_path: Path, models: tuple[Path, Path], kind: Any, config: Any, peft: LoraConfig | None
) -> None:
    own: dict[str, Any] = {"max_rows": 3} if config is SinKDConfig else {"teacher_learning_rate": 2e-3}
    teacher = {"teacher_peft_config": peft and TEACHER_LORA} if config is BDKDConfig else {}
    args = config(**settings(tmp_path, max_steps=4, save_strategy="steps", save_steps=2), **own)
    unbroken = made(kind, args, *models, peft_config=peft, **teacher)
    unbroken.train()
    resumed = made(kind, args, *models, peft_config=peft, **teacher)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert losses(resumed) == pytest.approx(losses(unbroken), rel=1e-6)
    assert same(weights(unbroken.model.student), weights(resumed.model.student))
    assert same(weights(unbroken.model.teacher), weights(resumed.model.teacher))


@pytest.mark.parametrize("peft", [LORA, None], ids=["lora", "full"])
def test_gradient_checkpointing_changes_nothing(
    tmp_path: Path, models: tuple[Path, Path], peft: LoraConfig | None
) -> None:
    found = []
    for checkpointing in (False, True):
        config = BDKDConfig(**settings(tmp_path, gradient_checkpointing=checkpointing))
        teacher = {"teacher_peft_config": peft and TEACHER_LORA}
        trainer = made(BDKDTrainer, config, *models, peft_config=peft, **teacher)
        trainer.train()
        assert trainer.model.teacher.is_gradient_checkpointing is checkpointing
        found.append((losses(trainer), trainer.evaluate()["eval_loss"]))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-6)


class NoLogits(TorchDispatchMode):
    """Fails when a tensor as large as [tokens, vocabulary] is made; parameters here are smaller."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.numel())
                if value.numel() >= self.elements:
                    raise AssertionError(f"{func} made {list(value.shape)}")
        return result


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_no_logits_over_the_vocabulary_are_made(
    tmp_path: Path, models: tuple[Path, Path], kind: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks smaller than these few tokens
    monkeypatch.setattr(divergence_cost, "CPU_CHUNK_BYTES", 2**18)
    monkeypatch.setattr(logprob_cost, "TILE_BYTES", 2**18)
    given = {"teacher_peft_config": TEACHER_LORA} if config is BDKDConfig else {}
    own = {"max_rows": 32} if config is SinKDConfig else {}
    trainer = made(kind, config(**settings(tmp_path), **own), *models, peft_config=LORA, **given)
    for model in (trainer.model.student, trainer.model.teacher):
        model.resize_token_embeddings(2048)
        model.requires_grad_(False)
    for name, weight in trainer.model.named_parameters():
        weight.requires_grad_("lora" in name and (config is BDKDConfig or "student" in name))
    batch = {name: value.repeat(3, 1) for name, value in batch_of(trainer, 8).items()}
    tokens = int((batch["labels"][:, 1:] != -100).sum())
    trainer.model.train()
    with NoLogits(tokens * 2048) as mode:
        trainer.compute_loss(trainer.model, batch).backward()
        trainer.model.eval()
        trainer.prediction_step(trainer.model, batch, prediction_loss_only=True)
    assert mode.largest > 0
    with pytest.raises(AssertionError, match="made"), NoLogits(tokens * 2048):  # it sees what it looks for
        trainer.model.student(input_ids=batch["input_ids"])


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_the_student_answers_for_the_pair(
    tmp_path: Path, models: tuple[Path, Path], kind: Any, config: Any
) -> None:
    trainer = made(kind, config(**settings(tmp_path)), *models, peft_config=LORA)
    trainer.train()
    assert trainer.model.config is trainer.model.student.config
    batch = batch_of(trainer, 1)
    trainer.model.eval()

    def found() -> torch.Tensor:
        with torch.no_grad():
            return trainer.model(**batch, use_cache=False, fused_lm_head=True).log_probs[0]

    def expected(model: Any) -> torch.Tensor:
        with torch.no_grad():
            logps = model(batch["input_ids"]).logits[0, :-1].log_softmax(-1)
        picked = logps.gather(1, batch["input_ids"][0, 1:, None]).squeeze(1)
        return picked.masked_fill(batch["labels"][0, 1:] == -100, 0.0)

    torch.testing.assert_close(found(), expected(trainer.model.student), rtol=1e-5, atol=1e-5)
    with trainer.model.disable_adapter():
        base = AutoModelForCausalLM.from_pretrained(models[0])
        torch.testing.assert_close(found(), expected(base), rtol=1e-5, atol=1e-5)


def test_a_saved_run_is_the_student(tmp_path: Path, models: tuple[Path, Path]) -> None:
    trainer = made(BDKDTrainer, BDKDConfig(**settings(tmp_path)), *models, peft_config=LORA)
    trainer.train()
    trainer.save_model(str(tmp_path / "result"))
    assert not (tmp_path / "result" / "teacher").exists()
    base = AutoModelForCausalLM.from_pretrained(models[0])
    loaded = PeftModel.from_pretrained(base, tmp_path / "result")
    assert same(weights(loaded), weights(trainer.model.student))


def test_the_teacher_is_saved_when_that_is_asked_for(tmp_path: Path, models: tuple[Path, Path]) -> None:
    trainer = made(BDKDTrainer, BDKDConfig(**settings(tmp_path), save_teacher=True), *models)
    trainer.train()
    trainer.save_model(str(tmp_path / "result"))
    teacher = AutoModelForCausalLM.from_pretrained(tmp_path / "result" / "teacher" / "model")
    assert same(weights(teacher), weights(trainer.model.teacher))
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "result")
    assert same(weights(student), weights(trainer.model.student))


@pytest.mark.parametrize(("kind", "config"), KINDS)
def test_metrics_count_tokens_not_batches(
    tmp_path: Path, models: tuple[Path, Path], kind: Any, config: Any
) -> None:
    own = {"mode": "per_sequence"} if config is SinKDConfig else {}
    trainer = made(kind, config(**settings(tmp_path), **own), *models)
    split = trainer.evaluate()  # 4 rows and 1
    trainer.args.per_device_eval_batch_size = 5
    whole = trainer.evaluate()
    names = [name for name in whole if not name.endswith(("_runtime", "_per_second", "epoch"))]
    assert {"eval_loss", "eval_student/ece", "eval_teacher/ece", "eval_student/accuracy"} <= set(names)
    for name in names:
        assert split[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6), name


def test_a_teacher_with_more_padding_gives_the_same(
    tmp_path: Path, models: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    plain = made(BDKDTrainer, BDKDConfig(**settings(tmp_path), teacher_trains=False), *models)
    assert "columns" not in caplog.text
    padded_teacher = AutoModelForCausalLM.from_pretrained(models[1])
    columns = padded_teacher.config.vocab_size
    padded_teacher.resize_token_embeddings(columns + 64)
    config = BDKDConfig(**settings(tmp_path), teacher_trains=False)
    with caplog.at_level(logging.WARNING):
        padded = made(BDKDTrainer, config, *models, teacher_model=padded_teacher)
    said = [record.message for record in caplog.records if "columns" in record.message]
    heads = f"the student's head has {columns} columns and the teacher's has {columns + 64}"
    assert said == [f"{heads}: only the first {columns} are compared"]
    batch = batch_of(plain)
    found, expected = (float(t.compute_loss(t.model, dict(batch))) for t in (padded, plain))
    assert found == pytest.approx(expected, rel=1e-6)


def test_another_tokenizer_is_refused(tmp_path: Path, models: tuple[Path, Path]) -> None:
    other = AutoTokenizer.from_pretrained(models[1])
    other.add_tokens(["<tool>"])
    with pytest.raises(
        ModelError, match=r"1 tokens that differ: '<tool>' is unknown to the student and \d+ to"
    ):
        made(SinKDTrainer, SinKDConfig(**settings(tmp_path)), *models, teacher_processing_class=other)
    renamed = AutoTokenizer.from_pretrained(models[1])
    renamed.eos_token = renamed.bos_token
    with pytest.raises(ModelError, match=r"share their special tokens, found eos_token '<\|im_end\|>' and"):
        made(SinKDTrainer, SinKDConfig(**settings(tmp_path)), *models, teacher_processing_class=renamed)


def test_a_teacher_without_the_labels_columns_is_refused(tmp_path: Path, models: tuple[Path, Path]) -> None:
    small = AutoModelForCausalLM.from_pretrained(models[1])
    small.resize_token_embeddings(64)
    with pytest.raises(
        ModelError, match=r"the training rows contain token id \d+, but .* share only 64 columns"
    ):
        made(SinKDTrainer, SinKDConfig(**settings(tmp_path)), *models, teacher_model=small)


@pytest.mark.parametrize(("kind", "config"), KINDS)
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_loss_that_is_not_finite_stops_with_step_and_rows(
    tmp_path: Path, models: tuple[Path, Path], kind: Any, config: Any, side: str
) -> None:
    trainer = made(kind, config(**settings(tmp_path)), *models)
    batch = batch_of(trainer)
    row = 2
    spoiled = torch.tensor([101])
    batch["input_ids"][row, 3] = spoiled
    model = getattr(trainer.model, side)
    with torch.no_grad():
        model.get_input_embeddings().weight[spoiled] = torch.nan
    with pytest.raises(
        FloatingPointError, match=rf"{side}/cross_entropy.* at step 0, rows \[{row}\] of the batch"
    ):
        trainer.compute_loss(trainer.model, batch)


@pytest.mark.parametrize("own", [{}, {"mode": "per_sequence"}, {"debiased": True}, None])
def test_a_batch_without_a_valid_token_is_a_differentiable_zero(
    tmp_path: Path, models: tuple[Path, Path], own: dict[str, Any] | None
) -> None:
    kind, config = (BDKDTrainer, BDKDConfig) if own is None else (SinKDTrainer, SinKDConfig)
    trainer = made(kind, config(**settings(tmp_path), **(own or {})), *models)
    batch = batch_of(trainer)
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert loss.item() == 0
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name  # else DDP would wait for it
            assert not weight.grad.any(), name


@pytest.mark.parametrize(
    ("config", "option", "words"),
    [
        (SinKDConfig, {"temperature": 0.0}, "temperature: expected greater than 0"),
        (SinKDConfig, {"epsilon": -1.0}, "epsilon: expected greater than 0, found -1.0"),
        (SinKDConfig, {"kl_temperature": 0.0}, "kl_temperature: expected greater than 0"),
        (SinKDConfig, {"sinkhorn_weight": -1.0}, "sinkhorn_weight: expected greater than or equal to 0"),
        (SinKDConfig, {"mode": "batch"}, "mode: expected 'token_set' or 'per_sequence', found 'batch'"),
        (SinKDConfig, {"max_rows": 0}, "max_rows: expected greater than or equal to 1"),
        (SinKDConfig, {"iterations": 0}, "iterations: expected greater than or equal to 1"),
        (SinKDConfig, {"packing": True}, "packing=True is not an option"),
        (BDKDConfig, {"temperature": -1.0}, "temperature: expected greater than 0"),
        (BDKDConfig, {"gate": "firm"}, "gate: expected 'hard' or 'soft', found 'firm'"),
        (BDKDConfig, {"nu": 0.5}, "nu: expected greater than or equal to 1"),
        (BDKDConfig, {"kappa": -0.1}, "kappa: expected greater than or equal to 0"),
        (BDKDConfig, {"kd_weight": float("nan")}, "kd_weight: expected a finite number, found nan"),
        (BDKDConfig, {"teacher_learning_rate": 0.0}, "teacher_learning_rate: expected greater than 0"),
        (
            BDKDConfig,
            {"teacher_trains": False, "save_teacher": True},
            "save_teacher: only allowed with teacher_trains",
        ),
        (BDKDConfig, {"loss_type": "dft"}, "loss_type='dft' is not an option"),
        (BDKDConfig, {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 is not an option"),
    ],
)
def test_options_out_of_range_are_refused(
    tmp_path: Path, config: Any, option: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        config(**settings(tmp_path), **option)


def test_the_teacher_learns_at_its_own_rate(tmp_path: Path, models: tuple[Path, Path]) -> None:
    config = BDKDConfig(**settings(tmp_path, lr_scheduler_type="constant"), teacher_learning_rate=1e-5)
    trainer = made(BDKDTrainer, config, *models)
    before = weights(trainer.model.teacher)
    trainer.train()
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {1e-3, 1e-5}
    counted = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert counted == len(list(trainer.model.parameters()))
    after = trainer.model.teacher.state_dict()
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 1e-4  # two Adam steps of 1e-5


def test_a_frozen_teacher_does_not_change(tmp_path: Path, models: tuple[Path, Path]) -> None:
    trainer = made(BDKDTrainer, BDKDConfig(**settings(tmp_path), teacher_trains=False), *models)
    trainer.model.teacher.config.attention_dropout = 0.5
    before = weights(trainer.model.teacher)
    trainer.train()
    assert same(before, weights(trainer.model.teacher))
    assert trainer.model.student.training
    assert not trainer.model.teacher.training
    assert not any(weight.requires_grad for weight in trainer.model.teacher.parameters())


def test_other_attributes_of_the_pair_are_the_students() -> None:
    student, teacher = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    pair = TeacherStudentPair(student, teacher, lambda *_: None, teacher_trains=False)  # type: ignore[arg-type, return-value]
    assert pair.in_features == 2
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = pair.no_such_thing


def test_prompt_learning_is_refused(tmp_path: Path, models: tuple[Path, Path]) -> None:
    from peft import PromptTuningConfig

    tuning = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ValueError, match="prompt learning is not supported"):
        made(SinKDTrainer, SinKDConfig(**settings(tmp_path)), *models, peft_config=tuning)


def test_prepared_by_trl_it_is_the_same(tmp_path: Path, models: tuple[Path, Path]) -> None:
    rows = tokenised(AutoTokenizer.from_pretrained(models[0]))
    options = settings(tmp_path, dataset_kwargs=None, max_length=64)
    trainer = made(SinKDTrainer, SinKDConfig(**options), *models, dataset=rows)
    assert trainer.train_dataset[3]["labels"] == rows[3]["labels"]
