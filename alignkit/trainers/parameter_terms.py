"""Parameter terms in a trainer: what they measure before the first step, the file that keeps it, and the penalty."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.data.dataset import load
from alignkit.data.tokens import IGNORED
from alignkit.errors import DataError, ModelError
from alignkit.terms.base import ParameterTerm, Scored, State

FOLDER = "terms"
"""Folder in `output_dir` with a file for each parameter term, which a resume reads."""


class ParameterTerms:
    """The parameter terms of a run with what each measured before the first step."""

    def __init__(self, trainer: Any, terms: Sequence[ParameterTerm]) -> None:
        self._trainer = trainer
        self._terms = terms
        self._states: list[State] = []

    def begin(self, *, resumed: bool) -> None:
        """Measure what the terms need, or read it in a resumed run. Collective. Raises ModelError or DataError."""
        measured = MeasuredModel(self._trainer)
        self._states = [self._state(term, measured, resumed=resumed) for term in self._terms]

    def _state(self, term: ParameterTerm, measured: "MeasuredModel", *, resumed: bool) -> State:
        accelerator = self._trainer.accelerator
        file = Path(self._trainer.args.output_dir) / FOLDER / f"{term.type}.safetensors"
        if resumed:
            if not file.is_file():
                raise ModelError(
                    f"{FOLDER}/{file.name} is missing: the term {term.type} cannot resume without it"
                )
            return {name: value.to(accelerator.device) for name, value in load_file(file).items()}
        state = measured.measure(term)
        if accelerator.is_main_process:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.contiguous() for name, value in state.items()}, file)
        accelerator.wait_for_everyone()
        return state

    def penalty(self) -> Tensor:
        """Return the sum of the penalties (scalar), differentiable in the trained weights."""
        measured = MeasuredModel(self._trainer)
        weights, scalings = measured.weights, measured.scalings
        pairs = zip(self._terms, self._states, strict=True)
        return torch.stack([term.penalty(weights, scalings, state) for term, state in pairs]).sum()


class MeasuredModel:
    """The trained model as a parameter term sees it (`alignkit.terms.base.Model`)."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._model = trainer.accelerator.unwrap_model(trainer.model)
        self.rank: int = trainer.accelerator.process_index
        self.processes: int = trainer.accelerator.num_processes

    @property
    def weights(self) -> dict[str, Tensor]:
        """The trained weights by name."""
        return {name: value for name, value in self._model.named_parameters() if value.requires_grad}

    @property
    def scalings(self) -> dict[str, float]:
        """Name of a module with a trained adapter -> alpha / r."""
        return {
            name: float(module.scaling[module.active_adapter[0]])
            for name, module in self._model.named_modules()
            if isinstance(getattr(module, "scaling", None), dict) and hasattr(module, "lora_A")
        }

    def measure(self, term: ParameterTerm) -> State:
        """Return the term's state, measured without dropout."""
        training = self._model.training
        self._model.eval()
        try:
            with self._trainer.accelerator.autocast():
                return term.prepare(self)
        finally:
            self._model.train(training)

    def sequences(self, file: str | None, count: int) -> list[Scored]:
        """Return at most `count` sequences of a file of completions, or of the held-out rows. Raises DataError."""
        if file is not None:
            found = load(
                Path(file),
                "supervised",
                self._trainer.processing_class,
                max_length=getattr(self._trainer.args, "max_length", None),
            )
            rendered = [one for sequences in found.sequences for one in sequences if one.loss_spans]
            return [Scored(one.ids, one.labels) for one in rendered[:count]]
        held_out = self._trainer.eval_dataset
        if held_out is None or isinstance(held_out, dict) or not hasattr(held_out, "__len__"):
            raise DataError(
                "anchor: expected `data`, or held-out rows that must not be forgotten; found neither"
            )
        return [_scored(held_out[at]) for at in range(min(count, len(held_out)))]

    def logits(self, one: Scored) -> Tensor:
        """Return the logits [labels with loss, V] that predict the labels, without gradient."""
        with torch.no_grad():
            found = self._model(input_ids=self._ids(one.ids), use_cache=False).logits[0, :-1]
        logits: Tensor = found[self._ids(one.labels)[0, 1:] != IGNORED]
        return logits

    def log_prob(self, one: Scored) -> Tensor:
        """Return the summed log-prob of the labels, differentiable."""
        labels = self._ids(one.labels)
        outputs = self._model(
            input_ids=self._ids(one.ids), labels=labels, use_cache=False, fused_lm_head=True
        )
        summed: Tensor = outputs.log_probs.float().sum()
        return summed

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""
        reduced: Tensor = self._trainer.accelerator.reduce(values, "sum")
        return reduced

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([ids], device=self._trainer.accelerator.device)


def _scored(row: Mapping[str, Any]) -> Scored:
    """A held-out row's answer with its prompt, in the columns of pairs or of completions. Raises DataError."""
    if "chosen_ids" in row:
        prompt, answer = list(row["prompt_ids"]), list(row["chosen_ids"])
        return Scored(prompt + answer, [IGNORED] * len(prompt) + answer)
    if "labels" in row:
        return Scored(list(row["input_ids"]), list(row["labels"]))
    raise DataError(
        "anchor: the held-out rows have no answers to keep; expected `data`, a file of completions"
    )


class Begin(TrainerCallback):
    """Measures what parameter terms need, once the Trainer has prepared the model and before the first step."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_: Any
    ) -> None:
        """Measure, or in a resumed run read."""
        self._trainer.parameter_terms.begin(resumed=state.global_step > 0)
