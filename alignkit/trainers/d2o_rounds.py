"""The schedule of online D2O: when to resample from the policy, and when to refresh the references."""

# ruff: noqa: ARG002 - transformers' callback protocol

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Rounds(TrainerCallback):
    """Callback of a D2OTrainer that resamples, refreshes and scores before a step, on the method's schedule."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the samples and references of a resumed run."""
        steps = range(state.global_step - 1, 0, -1)
        refreshed = next(
            (step for step in steps if self._due(step, self._trainer.method.ref_refresh_every)), None
        )
        drawn = next((step for step in steps if self._due(step, self._trainer.method.resample_every)), None)
        if refreshed:
            self._trainer.references.restore(refreshed)
        self._renew(drawn, score=bool(refreshed or drawn))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Resample and refresh if this step is due."""
        step = state.global_step
        method = self._trainer.method
        refresh, draw = self._due(step, method.ref_refresh_every), self._due(step, method.resample_every)
        if refresh:
            self._trainer.references.refresh(step)
        self._renew(step if draw else None, score=refresh or draw)

    def _due(self, step: int, every: int | None) -> bool:
        warmup = self._trainer.method.resample_warmup_steps
        return every is not None and step > 0 and step >= warmup and (step - warmup) % every == 0

    def _renew(self, drawn: int | None, *, score: bool) -> None:
        trainer = self._trainer
        numbers = list(trainer.train_dataset["row"])
        if drawn:
            open_rows = [number for number in numbers if not trainer.rows.rows[number].given]
            stale = trainer.draw(open_rows, drawn)
            if stale:
                trainer.report(
                    f"Step {drawn}: {len(stale):,} rows got no new sample and keep their earlier ones"
                )
        if score:
            trainer.score(numbers)
