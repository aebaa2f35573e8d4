"""A Fisher anchor against forgetting (term `anchor`)."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from alignkit.errors import FieldIssue
from alignkit.options import CONTENT_MATTERS, GivenAs, JobContext
from alignkit.sections import RunSections
from alignkit.terms.base import Model, ParameterTerm, Scored, State, Term

MEASURABLE = ("preference", "completion")
"""Kinds of held-out rows with answers that are to be kept."""
START, FISHER = "start/", "fisher/"
"""Prefixes of the names of the start weights and their Fisher information in the state."""


def _file(file_id: str | None, context: JobContext) -> str | None:
    """The path of a file that a job names."""
    return None if file_id is None else str(context.resolve_file(file_id))


class Anchor(ParameterTerm):
    """An anchor at the start weights, so that a second alignment does not undo the first.

    R = weight sum_k F_k (theta_k - start_k)^2. F_k is the mean over sequences of the squared gradient of a sequence's
    mean NLL: how much the model's answers depend on a weight.
    """

    type: Literal["anchor"] = "anchor"

    paper: ClassVar[str] = "2204.02610"
    code_read: ClassVar[bool] = True
    fidelity: ClassVar[Literal["exact", "translation"]] = "exact"

    weight: float = Field(1.0, ge=0, le=1e9, description="weight of the anchor")
    diagonal: Literal["fisher", "one"] = Field(
        "fisher", description="what a weight's change costs: its Fisher information, or 1 for all (L2-SP)"
    )
    labels: Literal["pseudo", "sampled", "data"] = Field(
        "pseudo",
        description="tokens that are differentiated: the model's first choice, a draw, or the data's",
    )
    sequences: int = Field(256, ge=1, le=65536, description="number of sequences that F is measured on")
    normalise: bool = Field(True, description="scale F to a mean of 1 over the trained weights")
    data: Annotated[
        str | None,
        CONTENT_MATTERS,
        GivenAs(
            "data",
            Annotated[str, Field(min_length=1, max_length=64)] | None,
            _file,
            default=None,
            description="id of a file of completions that must not be forgotten; default: the held-out rows",
            names_a_file=True,
        ),
    ] = Field(
        None,
        min_length=1,
        description="file of completions that must not be forgotten; default: the held-out rows",
    )

    def refusals(self, recipe: RunSections, _others: list[Term]) -> Iterator[FieldIssue]:
        """Yield an issue if there is nothing to measure the Fisher information on."""
        if self.data is not None or self.diagonal == "one":
            return
        if recipe.data.validation is None:
            yield FieldIssue(
                "data", "expected a file of completions, or data.validation to measure on; found neither"
            )
        elif (method := getattr(recipe, "method", None)) and method.rows not in MEASURABLE:
            yield FieldIssue(
                "data", f"is required with {method.type}, whose held-out rows have no answers to keep"
            )

    @property
    def weight_copies(self) -> int:
        """Two: the start and F."""
        return 2

    def prepare(self, model: Model) -> State:
        """Copy the start weights, and measure F."""
        weights = model.weights
        state = {START + name: value.detach().float().clone() for name, value in weights.items()}
        ones = {name: torch.ones_like(value, dtype=torch.float32) for name, value in weights.items()}
        fisher = self._fisher(model) if self.diagonal == "fisher" else ones
        return state | {FISHER + name: value for name, value in fisher.items()}

    def _fisher(self, model: Model) -> dict[str, Tensor]:
        names, weights = list(model.weights), list(model.weights.values())
        squares = [torch.zeros_like(value, dtype=torch.float32) for value in weights]
        sequences = model.sequences(self.data, self.sequences)
        for at in range(model.rank, len(sequences), model.processes):
            one = self._labelled(sequences[at], model, torch.Generator().manual_seed(at))
            tokens = sum(label != -100 for label in one.labels)
            gradients = torch.autograd.grad(model.log_prob(one) / tokens, weights, allow_unused=True)
            for square, gradient in zip(squares, gradients, strict=True):
                if gradient is not None:
                    square.add_(gradient.float().square())
        means = [model.summed(square) / len(sequences) for square in squares]
        if self.normalise:
            mean = sum(float(value.double().sum()) for value in means) / sum(value.numel() for value in means)
            means = [value / max(mean, 1e-30) for value in means]
        return dict(zip(names, means, strict=True))

    def _labelled(self, one: Scored, model: Model, generator: torch.Generator) -> Scored:
        """The sequence with the labels that are differentiated."""
        if self.labels == "data":
            return one
        logits = model.logits(one).float().cpu()
        if self.labels == "pseudo":
            chosen = logits.argmax(dim=1)
        else:
            chosen = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
        found = iter(chosen.tolist())
        return Scored(one.ids, [-100 if label == -100 else next(found) for label in one.labels])

    def penalty(self, weights: Mapping[str, Tensor], _scalings: Mapping[str, float], state: State) -> Tensor:
        """Return weight sum F (theta - start)^2."""
        parts = [
            (state[FISHER + name] * (value.float() - state[START + name]).square()).sum()
            for name, value in weights.items()
        ]
        return self.weight * torch.stack(parts).sum()
