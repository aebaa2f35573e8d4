"""Repulsion from models that learned what must not be said (term `repel`)."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

from alignkit.errors import FieldIssue, ModelError
from alignkit.options import CONTENT_MATTERS, GivenAs, JobContext
from alignkit.sections import RunSections
from alignkit.terms.base import Model, ParameterTerm, State, Term

A, B = ".lora_A.weight", ".lora_B.weight"
"""Ends of the names of an adapter's matrices in its file."""


def _adapters(names: list[str], context: JobContext) -> list[str]:
    """The adapters' folders of models that a job names."""
    return [_adapter(name, context) for name in names]


def _adapter(name: str, context: JobContext) -> str:
    source = context.resolve_model(name)
    if source.adapter is None:
        raise ModelError(f"expected a model that was fine-tuned with LoRA, found {name!r}")
    return str(source.adapter)


ROUNDING = 1e-6
"""Share of the own adapter's squared norm below which a distance from another one is rounding."""


class Repel(ParameterTerm):
    """A push away from adapters that were trained on unwanted answers: the second stage of unlearning.

    delta2 is the mean over these adapters of the squared Frobenius distance of the weights' changes, summed over
    modules, and scale its value at the start. `exp` adds weight exp(-delta2 / scale), `reciprocal` weight scale /
    delta2, `l2` -weight delta2 / scale.
    """

    type: Literal["repel"] = "repel"

    paper: ClassVar[str] = "2309.14054"
    code_read: ClassVar[bool] = True

    adapters: Annotated[
        list[str],
        CONTENT_MATTERS,
        GivenAs(
            "models",
            Annotated[list[str], Field(min_length=1, max_length=16)],
            _adapters,
            description="names of the models that were fine-tuned on unwanted answers",
            names_a_model=True,
        ),
    ] = Field(
        min_length=1,
        max_length=16,
        description="folders of the adapters that were trained on unwanted answers",
    )
    form: Literal["exp", "reciprocal", "l2"] = Field(
        "exp",
        description="how the push falls off with distance; l2 has no end, so only max_grad_norm bounds it",
    )
    weight: float = Field(1.0, ge=0, le=1e6, description="weight of the push, relative to the method's loss")

    @property
    def weight_copies(self) -> int:
        """One for each adapter, if their ranks are the trained one's."""
        return len(self.adapters)

    def refusals(self, recipe: RunSections, _others: list[Term]) -> Iterator[FieldIssue]:
        """Yield an issue for a run that trains all weights."""
        if recipe.lora is None:
            yield FieldIssue("type", "repel compares adapters: expected lora, found null")

    def prepare(self, model: Model) -> State:
        """Load the adapters, and measure the distance at the start. Raises ModelError if it is zero."""
        state: State = {}
        names = {bare(name): name for name in model.weights if ".lora_A." in name or ".lora_B." in name}
        for at, folder in enumerate(self.adapters):
            for name, value in adapter_of(Path(folder)).items():
                if name not in names:
                    raise ModelError(f"adapters.{at}: {name} is in no module that this run adapts")
                state[f"{at}/{name}"] = value.to(model.weights[names[name]].device)
        with torch.no_grad():
            scale = distance(model.weights, model.scalings, state, len(self.adapters))
            own = distance(model.weights, model.scalings, {}, 1)  # from no adapter at all
        if not float(scale) > ROUNDING * float(own):
            raise ModelError(
                "adapters: the run starts at the model that it is to leave; start from the base model"
            )
        return state | {"scale": scale.detach().clone()}

    def penalty(self, weights: Mapping[str, Tensor], scalings: Mapping[str, float], state: State) -> Tensor:
        """Return the push."""
        near = distance(weights, scalings, state, len(self.adapters)) / state["scale"]
        if self.form == "exp":
            return self.weight * torch.exp(-near)
        return self.weight / near if self.form == "reciprocal" else -self.weight * near


def distance(
    weights: Mapping[str, Tensor], scalings: Mapping[str, float], state: State, count: int
) -> Tensor:
    """Compute the mean over `count` adapters of sum over modules ||s B A - B_k A_k||_F^2 (scalar).

    The state's B_k include their scale. With Bc = [s B, -B_k] and Ac = [A; A_k] it is sum((Bc' Bc) * (Ac Ac')), so
    that no matrix of the weights' size is made.
    """
    own = {bare(name): value for name, value in weights.items() if ".lora_A." in name or ".lora_B." in name}
    total: Any = 0.0
    for name, first in own.items():
        if not name.endswith(A):
            continue
        module = name.removesuffix(A)
        second = own[module + B].float() * scalings[module]
        for at in range(count):
            theirs = state.get(f"{at}/{name}")
            left, right = second, first.float()
            if theirs is not None:
                left = torch.cat([second, -state[f"{at}/{module}{B}"]], dim=1)
                right = torch.cat([right, theirs], dim=0)
            total = total + ((left.T @ left) * (right @ right.T)).sum()
    return torch.as_tensor(total) / count


def bare(name: str) -> str:
    """Return the name of an adapter's matrix as its file has it: without peft's name of the adapter."""
    for kind in (A, B):
        begin = kind.removesuffix("weight")
        if begin in name:
            return name.partition(begin)[0] + kind
    return name


def adapter_of(folder: Path) -> dict[str, Tensor]:
    """Return the matrices of a LoRA adapter by name, float32, with B multiplied by its scale. Raises ModelError."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        found = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError) as error:
        raise ModelError(f"adapters: cannot read {folder.name}: {type(error).__name__}") from error
    if config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ModelError(f"adapters: expected plain LoRA in {folder.name}, found DoRA or ranks by module")
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return {
        name: value.float() * (scale if name.endswith(B) else 1.0)
        for name, value in found.items()
        if name.endswith((A, B))
    }
