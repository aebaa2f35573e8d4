"""The collapse guard, which samples and measures a few answers at each evaluation.

It compares them with the untrained model's answers, since a loss can look good while the answers collapse. If they
collapse, `on_collapse` decides: `warn` logs a warning, `stop` ends the run as failed, `rollback` restores the last
sound checkpoint.
"""

import json
from typing import Any

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.errors import CollapseError
from alignkit.evaluate import AnswerQuality, Limits, measure, reasons
from alignkit.run.evaluation_share import MOST_TOKENS
from alignkit.run.folder import RunFolder, write_json
from alignkit.sections import CollapseGuardSection
from alignkit.trainers.scoring import Answer, answer_of, draw, load_weights, token_logps

MAX_PROMPT_TOKENS = 512
MAX_GOOD_TOKENS = 256
MAX_SHOWN = 2000
"""Characters of a prompt or an answer in an event."""


class CollapseGuard(TrainerCallback):
    """Callback that watches one trainer. Collective: every rank must run it, and all draw the same answers."""

    def __init__(self, trainer: Any, options: CollapseGuardSection, folder: RunFolder, *, seed: int) -> None:
        self._trainer = trainer
        self._options = options
        tokens = options.max_new_tokens  # a run has settled it
        self._max_new_tokens = MOST_TOKENS if tokens == "auto" else tokens
        self._folder = folder
        self._seed = seed
        self._limits = Limits(options.reference_logp_drop, options.repetition_rise, options.good_logp_drop)
        self._rows = self._held_out()
        self._baseline: AnswerQuality | None = None
        self._checked_step = -1
        self._sound_steps: list[int] = []
        self._collapse: str | None = None
        self._drawn: list[Answer] = []

    def _held_out(self) -> list[tuple[list[int], list[int]]]:
        """The first rows of the held-out set, else of the training set, whose prompts are not too long."""
        held_out = self._trainer.eval_dataset
        dataset = self._trainer.train_dataset if held_out is None else held_out
        wanted = self._options.prompts
        rows: list[tuple[list[int], list[int]]] = []
        for row in dataset.select(range(min(len(dataset), 8 * wanted))):
            prompt, good = answer_of(row)
            if 0 < len(prompt) <= MAX_PROMPT_TOKENS and len(rows) < wanted:
                rows.append((prompt, good[:MAX_GOOD_TOKENS]))
        return rows

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the untrained model. A resumed run loads the measures of its start instead."""
        if not self._rows:
            return
        if state.global_step and self._folder.guard.exists():
            stored = json.loads(self._folder.guard.read_text(encoding="utf-8"))
            self._baseline = AnswerQuality(**stored["baseline"])
            # the interrupted run may have judged steps after the checkpoint, which will be trained again
            self._sound_steps = [step for step in stored["sound_steps"] if step <= state.global_step]
            judged = (entry["step"] for entry in state.log_history if "eval_answers/repetition" in entry)
            self._checked_step = max(judged, default=-1)
            return
        self._baseline = self._measure()
        self._checked_step = state.global_step
        self._log(self._baseline, [])
        self._show(state.global_step, [])
        self._store()

    def compare_now(self) -> AnswerQuality | None:
        """Measure the current model. Returns None if there is no prompt to answer."""
        return self._measure() if self._rows else None

    def faults_now(self) -> list[str]:
        """The reasons why the current model's answers count as collapsed; empty without measures of the start."""
        if self._baseline is None:
            return []
        (found,) = broadcast_object_list([reasons(self._measure(), self._baseline, self._limits)])
        return list(found)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the answers and act on the verdict."""
        self._check(state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the last step if no evaluation did, unless the run only pauses."""
        if state.global_step >= state.max_steps:
            self._check(state, control)

    def _check(self, state: TrainerState, control: TrainerControl) -> None:
        if self._baseline is None or self._checked_step == state.global_step or self._collapse is not None:
            return
        self._checked_step = state.global_step
        quality = self._measure()
        (found,) = broadcast_object_list([reasons(quality, self._baseline, self._limits)])
        self._log(quality, found)
        self._show(state.global_step, found)
        rolls_back = self._options.on_collapse == "rollback"
        if not found:
            self._sound_steps.append(state.global_step)
            control.should_save = control.should_save or rolls_back  # a rollback needs a checkpoint
            self._store()
            return
        self._warn(state.global_step, found)
        if self._options.on_collapse != "warn":
            self._collapse = f"the model collapsed by step {state.global_step}: {'; '.join(found)}"
            control.should_training_stop = True
            control.should_save = False

    @property
    def collapsed(self) -> bool:
        """Whether a collapse ended training."""
        return self._collapse is not None

    def settle(self) -> int | None:
        """Roll back after training if the answers collapsed. Returns the step that was restored, or None.

        Raises CollapseError if the run must end without a model: under `stop`, or if no sound checkpoint exists.
        """
        if self._collapse is None:
            return None
        if self._options.on_collapse == "stop":
            raise CollapseError(f"Training stopped: {self._collapse}. {ADVICE}")
        sound = self._sound_steps[-1] if self._sound_steps else None
        checkpoint = self._folder.checkpoints / f"checkpoint-{sound}"
        if not checkpoint.exists():
            raise CollapseError(
                f"Training stopped: {self._collapse}; there is no earlier sound checkpoint. {ADVICE}"
            )
        load_weights(self._trainer, checkpoint)
        if self._trainer.is_world_process_zero():
            message = f"Rolled back to step {sound}, the last sound checkpoint: {self._collapse}"
            print(message, flush=True)
            self._folder.emit(message, level="warn", data={"step": sound})
        return sound

    def _measure(self) -> AnswerQuality:
        prompts = [prompt for prompt, _ in self._rows]
        drawn = draw(self._trainer, prompts, max_new_tokens=self._max_new_tokens, seed=self._seed)
        self._drawn = drawn
        good = [Answer(prompt, answer) for prompt, answer in self._rows if answer]
        return measure(
            [answer.tokens for answer in drawn],
            token_logps(self._trainer, drawn) or [],
            token_logps(self._trainer, drawn, "reference"),
            token_logps(self._trainer, good) if good else None,
        )

    def _log(self, quality: AnswerQuality, found: list[str]) -> None:
        """Log the measures, the verdict, and the limit for the log-prob under the reference."""
        metrics = {**quality.metrics(), "answers/sound": float(not found)}
        baseline = None if self._baseline is None else self._baseline.metrics().get("answers/reference_logp")
        if baseline is not None:
            metrics["answers/reference_logp_before"] = baseline
            metrics["answers/reference_logp_limit"] = baseline - self._options.reference_logp_drop
        self._trainer.log({f"eval_{name}": value for name, value in metrics.items()})

    def _show(self, step: int, found: list[str]) -> None:
        """Report the answers just drawn, so that a person can read them."""
        if not self._trainer.is_world_process_zero():
            return
        answers = [
            {
                "prompt": self._text(answer.prompt),
                "answer": self._text(answer.tokens),
                "known": self._text(good),
            }
            for answer, (_, good) in zip(self._drawn, self._rows, strict=True)
        ]
        data = {"step": step, "sound": not found, "collapse": found, "answers": answers}
        self._folder.emit(f"Answers drawn at step {step}", data=data)

    def _text(self, tokens: list[int]) -> str:
        text: str = self._trainer.processing_class.decode(tokens, skip_special_tokens=True)
        return text.strip()[:MAX_SHOWN]

    def _warn(self, step: int, found: list[str]) -> None:
        if not self._trainer.is_world_process_zero():
            return
        message = f"The model may have collapsed at step {step}: {'; '.join(found)}. {ADVICE}"
        print(f"warning: {message}", flush=True)
        self._folder.emit(message, level="warn", data={"step": step, "collapse": found})

    def _store(self) -> None:
        if self._trainer.is_world_process_zero() and self._baseline is not None:
            baseline = {name: getattr(self._baseline, name) for name in AnswerQuality.__slots__}
            write_json(self._folder.guard, {"baseline": baseline, "sound_steps": self._sound_steps})


ADVICE = "Lower the learning rate, or add an SFT term."
