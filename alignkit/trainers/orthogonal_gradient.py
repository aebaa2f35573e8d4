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
from alignkit.trainers.item_log import MeasuringCallback

PARALLEL = 1e-6
"""Share of a gradient's norm below which its orthogonal part is rounding noise."""


class OrthogonalGradient(MeasuringCallback):
    """Callback that makes gradients orthogonal after they are clipped, before each step of any optimizer.

    It measures the share of the matrices' squared gradients that it removed.
    """

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Change the gradients of the optimizer's weights in place."""
        groups = kwargs["optimizer"].param_groups
        weights = [weight for group in groups for weight in group["params"] if weight.grad is not None]
        squares = [torch.zeros(2)]
        for weight in weights:
            changed, found = parts(weight.detach(), weight.grad.detach())
            weight.grad.copy_(changed)
            squares.append(found)
        removed, whole = torch.stack([one.to(squares[-1]) for one in squares]).sum(dim=0).tolist()
        if whole:
            self.measure("orthogonal/removed", removed, whole)


def orthogonal(weight: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient [..., m, n] without its component along the weight, rescaled to its norm.

    Leading dimensions are separate matrices, such as experts. Vectors, and matrices that are zero, keep their
    gradient. A gradient along the weight becomes zero. Computed in float32 or wider.
    """
    return parts(weight, gradient)[0]


def parts(weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `orthogonal` does, and [2], the squared norms of what it removes and of the whole gradient.

    Both are 0 for vectors.
    """
    wide = torch.promote_types(gradient.dtype, torch.float32)
    if weight.dim() < 2:
        return gradient, gradient.new_zeros(2, dtype=wide)
    w, g = weight.to(wide), gradient.to(wide)
    square, whole = _inner(w, w), _inner(g, g)
    along = _inner(w, g) / square.clamp(min=torch.finfo(wide).tiny)
    left = g - along * w
    norm, rest = whole.sqrt(), _inner(left, left).sqrt()
    is_noise = rest <= PARALLEL * norm
    scaled = torch.where(is_noise, torch.zeros_like(left), left * (norm / rest.masked_fill(is_noise, 1)))
    squares = torch.stack([(along.square() * square).sum(), whole.sum()])
    return torch.where(square > 0, scaled, g).to(gradient.dtype), squares


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
