"""Training for a quantised server: noise of the width of quantisation on the frozen weights, and the gap it leaves.

After EQ-Net (several widths in one run) and QuantNAS (noise in place of rounding), our reading, on LoRA: in each step
of training the frozen linear layers compute with

    W + strength * U * half step of a format at W        U uniform in [-1, 1]

where the format, or none, is drawn for the step. The adapter trains over the noise, so it depends less on digits that
a server in nf4, int8 or FP8 rounds off. Noise depends on seed, step and layer alone: all micro-batches and processes
have the same, a resumed run repeats it, and the backward draws it again instead of keeping it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.adapter_sections import ElasticSection
from alignkit.models.quantisers import half_steps, quantised, served_layers
from alignkit.recipe import Recipe
from alignkit.trainers.draws import generator_of

PLAIN = "plain"
"""Name of a step without noise, and of the weights as they are."""


class QuantisationNoise(TrainerCallback):
    """Callback that adds noise to the frozen linear layers while the model trains."""

    def __init__(self, options: ElasticSection, *, seed: int) -> None:
        self._options, self._seed = options, seed
        self.format = PLAIN
        """The current step's format."""
        self._step = 0
        self._hooks: list[Any] = []

    def draw(self, step: int) -> str:
        """Draw the format of a step: one of the options', or plain, all equally likely."""
        names = [PLAIN, *self._options.formats]
        return names[int(torch.randint(len(names), (), generator=generator_of(f"{self._seed}/{step}")))]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give every frozen linear layer its noise. In a pair, only the student's."""
        model = kwargs["model"]
        for name, layer in served_layers(getattr(model, "student", model)):
            self._hooks.append(layer.register_forward_hook(partial(self._add_noise, name)))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the step's format."""
        self._step = state.global_step
        self.format = self.draw(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the noise: what is measured between steps has none."""
        self.format = PLAIN

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove the noise."""
        while self._hooks:
            self._hooks.pop().remove()

    def _add_noise(
        self, name: str, layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        if not layer.training or self.format == PLAIN or self._options.strength == 0:
            return None
        key, strength = f"{self._seed}/{self._step}/{name}", self._options.strength
        make = partial(noise_of, layer.weight, self.format, strength, key)
        return output + _Noise.apply(inputs[0], make).to(output.dtype)


class _Noise(torch.autograd.Function):
    """x N^T, with a matrix N that is made anew in the backward instead of being kept until then."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, make: Callable[[], Tensor]) -> Tensor:
        ctx.make = make
        return F.linear(x, make().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.make().to(gradient.dtype), None


def noise_of(weight: Tensor, name: str, strength: float, key: str) -> Tensor:
    """Noise [d, k] float32 of a format on a weight: uniform within `strength` half steps, drawn from `key`."""
    generator = generator_of(key, weight.device)
    uniform = torch.rand(weight.shape, generator=generator, device=weight.device) * 2 - 1
    return uniform * (strength * half_steps(weight, name))


def measured_gap(trainer: Any, model: Any, formats: list[str]) -> dict[str, float]:
    """Held-out loss with the weights as they are (`plain`) and with the frozen ones quantised in each format.

    `model` is the published model of the trainer. Its weights are the same afterwards, and nothing is logged.
    Collective.
    """
    found = {PLAIN: _quiet_loss(trainer)}
    layers = list(served_layers(model))
    kept = [layer.weight.detach().to("cpu", copy=True) for _, layer in layers]
    for name in formats:
        try:
            for _, layer in layers:
                layer.weight.data.copy_(quantised(layer.weight, name))
            found[name] = _quiet_loss(trainer)
        finally:
            for (_, layer), weight in zip(layers, kept, strict=True):
                layer.weight.data.copy_(weight)
    return found


def _quiet_loss(trainer: Any) -> float:
    """The held-out loss, of which neither log nor callbacks hear: it is not the run's own."""
    handler, history = trainer.callback_handler, list(trainer.state.log_history)
    handler.callbacks, callbacks = [], handler.callbacks
    try:
        return float(trainer.evaluate()["eval_loss"])
    finally:
        handler.callbacks = callbacks
        trainer.state.log_history[:] = history


def noise_callbacks(recipe: Recipe) -> list[TrainerCallback]:
    """Return the callbacks of the recipe's `elastic`."""
    return [] if recipe.elastic is None else [QuantisationNoise(recipe.elastic, seed=recipe.seed)]
