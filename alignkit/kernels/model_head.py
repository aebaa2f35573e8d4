"""A model's own head, fused: `model(…, labels=…, fused_lm_head=True)` gives per-token log-probs, never logits.

The protocol is TRL's (`add_fused_lm_head`), so its trainers' code runs on it; the work is `linear_logprob`. Nothing
is assumed of an architecture: its own forward runs with a stand-in for its head, which keeps the states that the
head would have met and returns a short probe in place of the logits. What the forward makes of the probe is what it
makes of logits, so a scale and a soft cap are measured, not looked up.

The product with the head runs inside the model's forward and there as the head module's own (`in_head`): ZeRO-3 and
FSDP2 gather weights around a module's forward and backward. A loss over two models does the same with `head_states`
and `in_head`.
"""

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignkit.errors import ModelError
from alignkit.kernels.linear_logprob import linear_logprob
from alignkit.kernels.upstream import children_by_name

Result = TypeVar("Result")


class FusedHeadOutput(NamedTuple):
    """Per-token outputs [B, L-1] for the next-token labels; zero where the label is -100.

    A tuple, since ZeRO-3 and FSDP2 look for tensors in those, to gather weights before their backward.
    """

    log_probs: Tensor
    entropy: Tensor | None
    is_top1: Tensor | None
    aux_loss: Tensor | None = None
    """Scalar: the balance loss of a mixture of experts, where `output_router_logits=True` asks for it."""


class HeadWeights(NamedTuple):
    """A model's head, as fused heads take it."""

    weight: Tensor
    """[V, H]"""
    bias: Tensor | None
    """[V]"""
    logit_scale: float
    softcap: float | None


class MeasuredHead(NamedTuple):
    """What a model's forward was seen to do after the product with its head."""

    logit_scale: float
    softcap: float | None
    dtype: torch.dtype
    """Of the last product."""


class HeadStates(NamedTuple):
    """What a model's head meets in its forward."""

    hidden: Tensor
    """[B, L, H]"""
    aux_loss: Tensor | None
    """Scalar: the balance loss of a mixture of experts, where the forward makes one."""


def in_head(model: Any, function: Callable[..., Result], *hidden: Tensor) -> Result:
    """Run `function(head, *hidden)` as the forward of the head of `model`, so that its weights are whole.

    `model`: a causal LM of transformers without peft's wrapper, within its forward and after `head_states`. The
    result is a tensor, or a tuple or dict of tensors: sharding follows the gradient through those.
    """
    module, options = head_module(model), measured_head(model)
    if options is None:
        raise RuntimeError("in_head before head_states, which measures what becomes of logits")
    patched_before = module.__dict__.get("forward")

    def forward(*states: Tensor) -> Result:
        bias = _whole(getattr(module, "bias", None))
        return function(
            HeadWeights(_whole(module.weight), bias, options.logit_scale, options.softcap), *states
        )

    module.forward = forward
    try:
        result: Result = module(*hidden)
        return result
    finally:
        if patched_before is None:
            del module.forward
        else:
            module.forward = patched_before


def head_states(model: Any, *args: Any, **inputs: Any) -> HeadStates:
    """The states from which `model`'s head predicts each next token, by its own forward; no logits are made.

    `model`: a causal LM of transformers without peft's wrapper. Raises ModelError for an architecture whose head is
    not one linear layer, or that does more to logits than scale and softly cap them.
    """
    return _head_states(model, model, *args, **inputs)


def fuse_head(model: Any, *, entropy: bool = False, top1: bool = False) -> None:
    """Patch `model` (a causal LM of transformers, without peft's wrapper) so that it takes `fused_lm_head=True`.

    Without that argument the forward is what it was.
    """
    plain_forward = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain_forward(*args, **kwargs)
        labels = kwargs.pop("labels")[:, 1:]
        states = _head_states(self, plain_forward, *args, **kwargs)

        def log_probs(head: HeadWeights, hidden: Tensor) -> FusedHeadOutput:
            found = linear_logprob(
                hidden.reshape(-1, hidden.size(-1)),
                labels=labels.reshape(-1),
                entropy=entropy,
                top1=top1,
                **head._asdict(),
            )
            flat = (found.logps, found.entropy, found.top1)
            return FusedHeadOutput(*(None if x is None else x.view(labels.shape) for x in flat))

        return in_head(self, log_probs, states.hidden[:, :-1])._replace(aux_loss=states.aux_loss)

    # `generate` and the Trainer read the signature of forward to decide which arguments a model takes
    forward.__signature__ = _signature(plain_forward)  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)
    model._fused_head = True  # noqa: SLF001 - ours


def measured_head(model: Any) -> MeasuredHead | None:
    """What was measured in the last forward with a fused head; None before the first."""
    found: MeasuredHead | None = model.__dict__.get("_measured_head")
    return found


def is_fused(model: Any) -> bool:
    """Whether `fuse_head` has patched this model."""
    return "_fused_head" in model.__dict__


def head_module(model: Any) -> nn.Module:
    """The linear layer that makes `model`'s logits; raises ModelError where there is none."""
    module = model.get_output_embeddings()
    is_linear = (
        isinstance(module, nn.Module) and hasattr(module, "weight") and not isinstance(module, nn.Embedding)
    )
    if not is_linear:
        raise ModelError(f"{type(model).__name__} has no linear head over its vocabulary")
    return module


class _StandIn(nn.Module):
    """In the head's place: keeps the states that it is given and answers with a probe instead of logits."""

    def __init__(self, head: nn.Module, probe: Tensor) -> None:
        super().__init__()
        self.__dict__["head"] = (
            head  # not a submodule: its weights are no business of a sharded model's hooks
        )
        self.probe = probe
        self.calls: list[Tensor] = []

    def forward(self, states: Tensor) -> Tensor:
        self.calls.append(states)
        return self.probe.to(states.device).expand(*states.shape[:-1], -1)

    def __getattr__(self, name: str) -> Any:
        """Some forwards ask their head for its weight's dtype."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["head"], name)


def _head_states(model: Any, forward: Callable[..., Any], *args: Any, **inputs: Any) -> HeadStates:
    known = measured_head(model)
    if _takes(model, "use_cache"):
        inputs["use_cache"] = False
    with _stand_in(model, _PROBE if known is None else torch.zeros(1)) as stand_in:
        outputs = forward(*args, **inputs)
    if len(stand_in.calls) != 1 or stand_in.calls[0].dim() != 3:
        raise ModelError(f"{type(model).__name__} does not make its logits by one call of its head")
    hidden = stand_in.calls[0]
    options = known[:2] if known else _options(type(model).__name__, outputs.logits)
    model._measured_head = MeasuredHead(*options, _product_dtype(hidden, head_module(model)))  # noqa: SLF001 - ours
    return HeadStates(hidden, getattr(outputs, "aux_loss", None))


def _product_dtype(hidden: Tensor, head: nn.Module) -> torch.dtype:
    device = hidden.device.type
    dtype: torch.dtype = head.weight.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


@contextmanager
def _stand_in(model: Any, probe: Tensor) -> Iterator[_StandIn]:
    """Put a stand-in where the head is; the head's own hooks do not run meanwhile, so ZeRO-3 gathers it once."""
    head = head_module(model)
    named = ((parent, *item) for parent in model.modules() for item in children_by_name(parent).items())
    places = ((parent, name) for parent, name, child in named if child is head)
    parent, name = next(places, (None, ""))
    if parent is None:
        raise ModelError(f"{type(model).__name__} has no head of its own: it makes logits from its embedding")
    stand_in = _StandIn(head, probe)
    children = children_by_name(parent)
    children[name] = stand_in
    try:
        yield stand_in
    finally:
        children[name] = head


_PROBE = torch.tensor([0.0, *(sign * 2.0**power for power in range(-10, 16) for sign in (1, -1))])
"""Stands for logits, float32: small enough for a slope, large enough for a soft cap."""
_ROUNDING = 1e-4
"""Relative; of a forward that rounds logits to 16 bits, more."""


def _options(name: str, logits: Tensor) -> tuple[float, float | None]:
    """(logit scale s, soft cap c) of a forward that made `logits` of `_PROBE` x: c tanh(s x / c), or s x.

    Raises ModelError for any other function.
    """
    if logits.requires_grad:
        raise ModelError(f"{name} trains what it does to its logits, which a fused head cannot")
    found = logits.reshape(-1, logits.size(-1))[0].double().cpu()
    probe = _PROBE.double()
    if found.shape != probe.shape:
        raise ModelError(f"{name} does not return one logit for each that its head makes")
    rounding = max(_ROUNDING, 2 * torch.finfo(logits.dtype).eps)
    scale = float(found[1] / probe[1])
    largest = float(found[-2])
    softcap = None if abs(largest - scale * float(probe[-2])) <= rounding * abs(largest) else largest
    x = scale * probe
    expected = x if softcap is None else softcap * torch.tanh(x / softcap)
    if not bool(((found - expected).abs() <= rounding * expected.abs()).all()) or scale == 0:
        raise ModelError(f"{name} does more to its logits than scale and softly cap them")
    return _meant(scale), None if softcap is None else _meant(softcap)


def _meant(value: float) -> float:
    """The number of few digits that `value`, measured in float32, is in all likelihood."""
    short = float(f"{value:.4g}")
    return short if abs(short - value) < 1e-6 * abs(value) else value


def _takes(model: Any, name: str) -> bool:
    parameters = inspect.signature(type(model).forward).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _signature(function: Any) -> Any:
    signature = inspect.signature(function)
    return signature.replace(
        parameters=[
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
            *signature.parameters.values(),
        ]
    )


def _whole(parameter: Tensor | None) -> Any:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
