"""Nested ranks of LoRA: each step trains only the first k ranks (nested dropout, as in Compressing Features for
Learning with Noisy Labels; our translation to adapters).

    k ~ P(k), P(k) ~ exp(-(k / spread)^2) for k = 1 .. r        delta W = s B[:, :k] A[:k, :]

One k a step, the same for all layers, micro-batches and processes, drawn by seed and step, so a resumed run repeats
it. Evaluation and serving use all ranks. For a linear least-squares target the optimum is the truncated SVD for every
k at once, so ranks come out in order of importance.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.models.adapters import START
from alignkit.recipe import Recipe
from alignkit.trainers.item_log import MeasuringCallback


class NestedRanks(MeasuringCallback):
    """Callback that masks the ranks beyond k while the model trains."""

    def __init__(self, rank: int, spread: float | None, *, seed: int) -> None:
        self._seed = seed
        self.probabilities = probabilities(rank, spread or rank / 4)
        self.kept = rank
        """Ranks that the current step trains."""
        self._hooks: list[Any] = []

    def draw(self, step: int) -> int:
        """Draw the number of ranks of a step."""
        # a CPU generator reads the low 32 bits of its seed alone
        generator = torch.Generator().manual_seed((self._seed * 1_000_003 + step) % 2**32)
        return int(torch.multinomial(self.probabilities, 1, generator=generator)) + 1

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Mask the outputs of every A that trains. In a pair, only the student's."""
        model = kwargs["model"]
        student = getattr(model, "student", model)
        for module in student.modules():
            for name, inner in (getattr(module, "lora_A", None) or {}).items():
                if name != START:
                    self._hooks.append(inner.register_forward_hook(self._mask))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the step's number of ranks, which is a metric."""
        self.kept = self.draw(state.global_step)
        self.measure("nested/ranks", self.kept)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the masks."""
        while self._hooks:
            self._hooks.pop().remove()

    def _mask(self, module: nn.Module, _inputs: Any, output: Tensor) -> Tensor | None:
        if not module.training or self.kept >= output.shape[-1]:
            return None
        return output * (torch.arange(output.shape[-1], device=output.device) < self.kept)


def probabilities(rank: int, spread: float) -> Tensor:
    """P(k) for k = 1 .. rank, [rank] float64."""
    exponents = -(torch.arange(1, rank + 1, dtype=torch.float64) / spread).square()
    return torch.softmax(exponents, dim=0)


def nested_callbacks(recipe: Recipe) -> list[TrainerCallback]:
    """Return the callbacks of the recipe's `lora.nested`."""
    lora = recipe.lora
    if lora is None or lora.nested is None:
        return []
    return [NestedRanks(lora.r, lora.nested.spread, seed=recipe.seed)]
