"""Fused heads for transformers models: `model(…, labels=…, fused_lm_head=True)` returns per-token log-probs.

The protocol is that of TRL's `add_fused_lm_head`, so TRL's trainers can use it; `linear_logprob` does the work. It
works for any architecture. The model's own forward runs with a stand-in for its head. The stand-in stores the hidden
states and returns a short probe instead of logits. The forward's output for the probe shows the model's logit scale
and soft cap, so they are measured instead of looked up.

The matmul with the head runs inside the model's forward, as the forward of the head module (`in_head`), since ZeRO-3
and FSDP2 gather weights around a module's forward and backward. A loss over two models uses `head_states` and
`in_head` directly.
"""

import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from alignkit.errors import ModelError
from alignkit.kernels.linear_logprob import linear_logprob
from alignkit.kernels.upstream import children_by_name

IGNORED = -100
"""Label of a token without loss, as in torch."""
Result = TypeVar("Result")


class FusedHeadOutput(NamedTuple):
    """Per-token outputs [B, L-1] for the next-token labels, zero where the label is -100.

    It is a tuple, in which ZeRO-3 and FSDP2 find the tensors whose backward needs gathered weights.
    """

    log_probs: Tensor
    entropy: Tensor | None
    is_top1: Tensor | None
    aux_loss: Tensor | None = None
    """Scalar load-balancing loss of a mixture of experts, if the input has `output_router_logits=True`."""


class HeadWeights(NamedTuple):
    """Weights and logit transform of a model's head, as arguments of the fused heads."""

    weight: Tensor
    """Weight of the head [V, H]."""
    bias: Tensor | None
    """Bias of the head [V], or None."""
    logit_scale: float
    softcap: float | None


OwnHead = Callable[[HeadWeights, Tensor, Tensor], Any]
"""A function (head, hidden states [B, L-1, H], labels [B, L-1]) -> a NamedTuple of tensors with `aux_loss`."""


class MeasuredHead(NamedTuple):
    """The logit transform that was measured in a model's forward."""

    logit_scale: float
    softcap: float | None
    dtype: torch.dtype
    """Dtype of the last matmul with the head."""


class PackedRows(NamedTuple):
    """The packed form of a padded batch, as `alignkit.packing` makes it."""

    inputs: dict[str, Any]
    """Inputs of the model's forward: packed `input_ids`, with `position_ids` and `attention_mask`."""
    places: Tensor
    """[N], for each label but -100 of the batch's labels [B, L-1], in their order, the index of its predictor in the
    flattened rows."""


class HeadStates(NamedTuple):
    """The hidden states that a model's forward passes to its head."""

    hidden: Tensor
    """Hidden states [B, L, H]."""
    aux_loss: Tensor | None
    """Scalar load-balancing loss of a mixture of experts, if the forward returns one."""


def in_head(model: Any, function: Callable[..., Result], *hidden: Tensor) -> Result:
    """Run `function(head, *hidden)` as the forward of the model's head, so that sharded weights are gathered.

    `model` is a transformers causal LM without peft's wrapper. Call this after `head_states` and within the model's
    forward. The result must be a tensor, or a tuple or dict of tensors, so that sharding hooks see its gradient.
    """
    module, options = head_module(model), measured_head(model)
    if options is None:
        raise RuntimeError("in_head was called before head_states, which measures the logit transform")

    def forward(*states: Tensor) -> Result:
        bias = _whole(getattr(module, "bias", None))
        return function(
            HeadWeights(_whole(module.weight), bias, options.logit_scale, options.softcap), *states
        )

    if (
        torch.compiler.is_compiling()
    ):  # hooks of a sharded head do not run; DTensors are gathered all the same
        return forward(*hidden)
    patched_before = module.__dict__.get("forward")
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
    """Run the model's forward up to its head and return the head's input. No logits are made.

    `model` is a transformers causal LM without peft's wrapper. Raises ModelError if the head is not one linear layer,
    or if the forward does more to logits than a scale and a soft cap.
    """
    return _head_states(model, model, *args, **inputs)


def fuse_head(model: Any, *, entropy: bool = False, top1: bool = False) -> None:
    """Patch the forward of `model`, a transformers causal LM without peft's wrapper, to accept `fused_lm_head=True`.

    Without that argument the forward is unchanged. `entropy` and `top1` add these outputs. `fused_lm_head` may also
    be an `OwnHead`, whose result is returned instead.
    """
    plain_forward = model.forward

    def forward(self: Any, *args: Any, fused_lm_head: bool | OwnHead = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return plain_forward(*args, **kwargs)
        given = kwargs.pop("labels")
        labels = given[:, 1:]
        if callable(fused_lm_head):
            states = _head_states(self, plain_forward, *args, **kwargs)
            found = in_head(self, fused_lm_head, states.hidden[:, :-1], labels)
            return found._replace(aux_loss=states.aux_loss)
        packer = None if args else self.__dict__.get("_packer")
        packed = None if packer is None else packer(kwargs, given)
        if packed is None:
            states = _head_states(self, plain_forward, *args, **kwargs)
            hidden, targets = states.hidden[:, :-1].flatten(0, 1), labels.reshape(-1)
        else:
            states = _head_states(self, plain_forward, **kwargs | packed.inputs)
            hidden, targets = states.hidden.flatten(0, 1)[packed.places], labels[labels != IGNORED]

        def log_probs(head: HeadWeights, hidden: Tensor) -> FusedHeadOutput:
            found = linear_logprob(
                hidden,
                labels=targets,
                entropy=entropy,
                top1=top1,
                ignore_index=IGNORED if packed is None else None,
                **head._asdict(),
            )
            flat = (found.logps, found.entropy, found.top1)
            return FusedHeadOutput(*(None if x is None else _at_labels(x, labels) for x in flat))

        return in_head(self, log_probs, hidden)._replace(aux_loss=states.aux_loss)

    # `generate` and the Trainer read forward's signature to find out which arguments the model accepts
    forward.__signature__ = _signature(plain_forward)  # type: ignore[attr-defined]
    model.forward = types.MethodType(forward, model)
    model._fused_head = True  # noqa: SLF001 - ours


def _at_labels(values: Tensor, labels: Tensor) -> Tensor:
    """`values` in the shape of `labels` [B, L-1]: of all of them, or of those that are not -100, with zeros else."""
    if values.numel() == labels.numel():
        return values.view(labels.shape)
    return values.new_zeros(labels.shape).masked_scatter(labels != IGNORED, values)


def measured_head(model: Any) -> MeasuredHead | None:
    """Return the measurement of the last forward with a fused head; None before the first."""
    found: MeasuredHead | None = model.__dict__.get("_measured_head")
    return found


def is_fused(model: Any) -> bool:
    """Return whether `fuse_head` has patched this model."""
    return "_fused_head" in model.__dict__


def architecture(model: Any) -> str:
    """Return the name of the model's class; not that of the subclass which FSDP2 makes of it."""
    return next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule)).__name__


def head_module(model: Any) -> nn.Module:
    """Return the linear layer that makes the model's logits. Raises ModelError if there is none."""
    module = model.get_output_embeddings()
    is_linear = (
        isinstance(module, nn.Module) and hasattr(module, "weight") and not isinstance(module, nn.Embedding)
    )
    if not is_linear:
        raise ModelError(f"{architecture(model)} has no linear head over its vocabulary")
    return module


class _StandIn(nn.Module):
    """Replaces the head: stores the hidden states and returns a probe instead of logits."""

    def __init__(self, head: nn.Module, probe: Tensor) -> None:
        super().__init__()
        self.__dict__["head"] = (
            head  # not a submodule, so that the hooks of a sharded model do not find its weights
        )
        self.probe = probe
        self.calls: list[Tensor] = []

    def forward(self, states: Tensor) -> Tensor:
        self.calls.append(states)
        return self.probe.to(states.device).expand(*states.shape[:-1], -1)

    def __getattr__(self, name: str) -> Any:
        """Look up other attributes on the head, since some forwards read its weight's dtype."""
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
        raise ModelError(f"{architecture(model)} does not make its logits by one call of its head")
    hidden = stand_in.calls[0]
    options = known[:2] if known else _options(architecture(model), outputs.logits)
    model._measured_head = MeasuredHead(*options, _product_dtype(hidden, head_module(model)))  # noqa: SLF001 - ours
    return HeadStates(hidden, getattr(outputs, "aux_loss", None))


def _product_dtype(hidden: Tensor, head: nn.Module) -> torch.dtype:
    device = hidden.device.type
    dtype: torch.dtype = head.weight.dtype
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


@contextmanager
def _stand_in(model: Any, probe: Tensor) -> Iterator[_StandIn]:
    """Replace the head by a stand-in for the duration. The head's hooks do not run, so ZeRO-3 gathers it once."""
    head = head_module(model)
    named = ((parent, *item) for parent in model.modules() for item in children_by_name(parent).items())
    places = ((parent, name) for parent, name, child in named if child is head)
    parent, name = next(places, (None, ""))
    if parent is None:
        raise ModelError(f"{architecture(model)} has no head of its own: it makes logits from its embedding")
    stand_in = _StandIn(head, probe)
    children = children_by_name(parent)
    children[name] = stand_in
    try:
        yield stand_in
    finally:
        children[name] = head


_PROBE = torch.tensor([0.0, *(sign * 2.0**power for power in range(-10, 16) for sign in (1, -1))])
"""Values in place of logits, float32: small ones to measure the scale, large ones to measure the soft cap."""
_ROUNDING = 1e-4
"""Relative rounding error to accept. A forward that rounds logits to 16 bits is allowed more."""


def _options(name: str, logits: Tensor) -> tuple[float, float | None]:
    """Derive (logit scale s, soft cap c) from `logits`, the forward's output for `_PROBE`.

    The forward must compute c tanh(s x / c) or s x of x. Raises ModelError for any other function.
    """
    if logits.requires_grad:
        raise ModelError(f"{name} applies trained weights to its logits, which a fused head cannot do")
    found = logits.reshape(-1, logits.size(-1))[0].double().cpu()
    probe = _PROBE.double()
    if found.shape != probe.shape:
        raise ModelError(f"{name} does not return one logit for each logit of its head")
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
    """Round `value`, measured in float32, to four digits if it is that close to such a number."""
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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch the model to evaluation for the duration, then restore each module's mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
