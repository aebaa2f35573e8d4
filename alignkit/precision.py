"""Chooses a precision by measured error: how far each precision moves this model's log-ratios from float32's.

The loss of every preference method is a function of log pi - log pi_ref. Rounding does not cancel in it: an adapter
that changes almost nothing flips roundings everywhere. So bfloat16 autocast, the usual default, moves the log-ratio
of an answer of 119 tokens by 0.6 nats rms on SmolLM2-135M, and float16 by 0.08. The error grows with the root of the
number of tokens.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

TOKENS = 100
"""Number of tokens that an error budget refers to."""
PERTURBATION = 1e-3
"""Standard deviation of the trial adapter's B, as of an adapter early in training."""
LARGEST_HALF = 65_504
HALF_MARGIN = 4
"""Factor by which a linear layer's outputs must stay below float16's largest value, because training moves them."""
WORTHWHILE = 50_000_000
"""Number of parameters below which 16-bit products do not speed up a CPU."""

Row = tuple[Sequence[int], Sequence[tuple[int, int]]]
"""Token ids, and the spans of them that carry loss."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The error and time of one precision."""

    error: float
    """Root mean square error of the log-ratios relative to float32, nats per hundred tokens; inf if it overflows."""
    seconds: float
    """Time of the forwards over all rows."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen precision, and the measurements of all."""

    way: str
    within: bool
    """Whether its error is within the budget."""
    measured: Mapping[str, Measured]

    def sentence(self, budget: float) -> str:
        """The choice and all errors, as a sentence for the log."""
        errors = ", ".join(f"{way} {found.error:.3f}" for way, found in self.measured.items())
        end = "" if self.within else "; none is within the budget; float32 weights (model.dtype) can be"
        unit = f"nats per hundred tokens (budget {budget:g})"
        return f"Precision {self.way}: error of log-ratios in {unit}: {errors}{end}"


class InFloat32(TorchFunctionMode):
    """Computes in float32 regardless of the weights' dtype, one weight at a time; records the largest output."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` on float32 copies of 16-bit arguments. For an embedding, only the rows looked up are cast."""
        if func is torch.nn.functional.embedding:
            return func(*args, **(kwargs or {})).float()
        if func not in _CAST:
            return func(*args, **(kwargs or {}))
        found = func(*tree_map(_widened, args), **tree_map(_widened, kwargs or {}))
        if func is torch.nn.functional.linear:
            self.largest = max(self.largest, float(found.detach().abs().amax()))
        return found


_CAST: frozenset[Any] = frozenset(
    {
        torch.nn.functional.linear,
        torch.nn.functional.conv1d,
        torch.nn.functional.layer_norm,
        torch.nn.functional.rms_norm,
        torch.matmul,
        torch.bmm,
        torch.addmm,
        torch.Tensor.matmul,
        torch.Tensor.__matmul__,
        torch.Tensor.mul,
        torch.Tensor.__mul__,
        torch.Tensor.__rmul__,
        torch.Tensor.add,
        torch.Tensor.__add__,
        torch.Tensor.__radd__,
    }
)


def _widened(value: Any) -> Any:
    narrow = isinstance(value, torch.Tensor) and value.dtype in {torch.float16, torch.bfloat16}
    return value.float() if narrow else value


def ways(dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """The precisions in which a model with weights of `dtype` can train on `device`, the fastest first.

    Names are those of `training.mixed_precision`. Of two equally fast ones the more exact comes first.
    """

    def autocast(kind: torch.dtype) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: torch.autocast(device.type, kind)

    found: dict[str, Callable[[], AbstractContextManager[Any]]] = {}
    if device.type == "cuda":
        found["fp16"] = autocast(torch.float16)
    if device.type != "cuda" or torch.cuda.is_bf16_supported():
        found["bf16"] = autocast(torch.bfloat16)
    if dtype == torch.float32:
        if device.type == "cuda":
            found["tf32"] = _tf32
        found["no"] = nullcontext
    return found


@contextmanager
def _tf32() -> Iterator[None]:
    """Compute float32 products with inputs rounded to TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def choose(model: Any, rows: Sequence[Row], budget: float, *, seed: int = 0) -> Choice:
    """The fastest precision with an error of at most `budget` nats per hundred tokens on `rows`, else the most exact.

    `model`: a causal LM on the device that trains it; it is not changed.
    """
    device = next(model.parameters()).device
    candidates = ways(model.dtype, device)
    measured: dict[str, Measured] = {}
    with perturbed(model, seed) as trial:
        mode = InFloat32()
        exact, _ = log_ratios(trial, rows, lambda: mode)
        for way, context in candidates.items():
            found, seconds = log_ratios(trial, rows, context)
            overflows = way == "fp16" and mode.largest * HALF_MARGIN > LARGEST_HALF
            measured[way] = Measured(math.inf if overflows else error_of(found, exact, rows), seconds)
    within = [way for way, found in measured.items() if found.error <= budget]
    if device.type == "cpu":  # where the faster one is known only by timing
        within.sort(key=lambda way: measured[way].seconds)
    if within:
        return Choice(within[0], True, measured)
    return Choice(min(measured, key=lambda way: measured[way].error), False, measured)


def error_of(found: Sequence[float], exact: Sequence[float], rows: Sequence[Row]) -> float:
    """Root mean square difference of the log-ratios, each scaled to `TOKENS` tokens by the root of its length.

    Returns inf if a log-ratio is NaN.
    """
    squares = [
        (one - other) ** 2 * TOKENS / max(1, _trained(row))
        for one, other, row in zip(found, exact, rows, strict=True)
    ]
    mean = sum(squares) / max(1, len(squares))
    return math.sqrt(mean) if math.isfinite(mean) else math.inf


def _trained(row: Row) -> int:
    return sum(end - start for start, end in row[1])


@contextmanager
def perturbed(model: Any, seed: int) -> Iterator[Any]:
    """Put a small random adapter on every linear layer of `model`, and remove it at the end."""
    from peft import LoraConfig, get_peft_model  # saves peft if nothing is measured

    was_training, grads = model.training, [weight.requires_grad for weight in model.parameters()]
    own = getattr(model, "peft_config", None)
    if own is not None:  # the run continues from an adapter, which is measured against its base
        with model.disable_adapter():
            yield model
        return
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trial = get_peft_model(model, config)
        for name, weight in trial.named_parameters():
            if "lora_B" in name:
                weight.data.normal_(std=PERTURBATION)
    trial.eval()
    try:
        yield trial
    finally:
        trial.unload()
        model.train(was_training)
        for weight, wanted in zip(model.parameters(), grads, strict=True):
            weight.requires_grad_(wanted)
        if hasattr(model, "peft_config"):
            del model.peft_config


def log_ratios(
    model: Any, rows: Sequence[Row], context: Callable[[], AbstractContextManager[Any]]
) -> tuple[list[float], float]:
    """(log pi - log pi_ref of each row's trained tokens, seconds), both computed within `context`."""
    started = time.perf_counter()
    found = []
    for ids, spans in rows:
        with torch.no_grad(), context():
            policy = _log_prob(model, ids, spans)
            with model.disable_adapter():
                found.append(float(policy - _log_prob(model, ids, spans)))
    return found, time.perf_counter() - started


def _log_prob(model: Any, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
    logits = model(input_ids=tokens, use_cache=False).logits[0, :-1].double()
    logps = logits.gather(1, tokens[0, 1:, None])[:, 0] - logits.logsumexp(1)
    return torch.stack([logps[max(0, start - 1) : end - 1].sum() for start, end in spans]).sum()
