"""Gradients orthogonal to their weights (arXiv 2501.04697, perpGrad), as a callback of the Trainer.

For each weight matrix w with gradient g,

    g' = g - (w . g) / (w . w) w        g <- g' ||g|| / ||g'||

The removed component only scales the matrix, hence logits and margins, and changes no order of preference. With plain
gradient descent ||w||^2 then grows by exactly lr^2 ||g||^2 a step. An adaptive optimizer's update is not the
gradient, so there the property holds for the gradient only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignkit.recipe import Recipe

PARALLEL = 1e-6
"""Share of a gradient's norm below which its orthogonal part is rounding noise."""


class OrthogonalGradient(TrainerCallback):
    """Callback that makes gradients orthogonal after they are clipped, before each step of any optimizer."""

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Change the gradients of the optimizer's weights in place."""
        for group in kwargs["optimizer"].param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad.copy_(orthogonal(weight.detach(), weight.grad.detach()))


def orthogonal(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient [..., m, n] without its component along the weight, rescaled to its norm.

    Leading dimensions are separate matrices, such as experts. Vectors, and matrices that are zero, keep their
    gradient. A gradient along the weight becomes zero. Computed in float32 or wider.
    """
    if weight.dim() < 2:
        return gradient
    wide = torch.promote_types(gradient.dtype, torch.float32)
    w, g = weight.to(wide), gradient.to(wide)
    square = _inner(w, w)
    left = g - _inner(w, g) / square.clamp(min=torch.finfo(wide).tiny) * w
    norm, rest = _inner(g, g).sqrt(), _inner(left, left).sqrt()
    is_noise = rest <= PARALLEL * norm
    scaled = torch.where(is_noise, torch.zeros_like(left), left * (norm / rest.masked_fill(is_noise, 1)))
    return torch.where(square > 0, scaled, g).to(gradient.dtype)


def _inner(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=(-2, -1), keepdim=True)


GRADIENTS: dict[str, Callable[[], list[TrainerCallback]]] = {
    "plain": list,
    "orthogonal": lambda: [OrthogonalGradient()],
}
"""Value of `training.gradient` -> the callbacks that it adds."""


def gradient_callbacks(recipe: Recipe) -> list[TrainerCallback]:
    """Return the callbacks of the recipe's `training.gradient`."""
    return GRADIENTS[recipe.training.gradient]()
