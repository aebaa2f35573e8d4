"""Parts 1 to 5 of `benchmarks.device`: the fused heads. torch and Triton alone; peers where they are installed."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignkit.kernels import linear_divergence, linear_logprob, pairwise_l1, sinkhorn
from alignkit.kernels.gpu_plan import (
    ROW_KERNEL_SHARE,
    Device,
    Work,
    chunk_seconds,
    padded,
    plan,
    product_seconds,
)
from alignkit.kernels.linear_logprob.records import OPTIONAL
from alignkit.kernels.products import states
from benchmarks import linear_divergence as divergence_bench
from benchmarks import linear_logprob as logprob_bench
from benchmarks import pairwise_l1 as l1_bench
from benchmarks import sinkhorn as sinkhorn_bench
from benchmarks.device import Bench, Row, timed

SHAPES = ((4096, 128_256), (896, 151_936))
"""(H, V): an 8B's head, and a small model's."""
TINY = ((16, 301),)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LIMITS = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4}
OPTIONS: tuple[dict[str, float], ...] = ({}, {"softcap": 20.0}, {"temperature": 1.7})


class Case(NamedTuple):
    """One comparison."""

    dtype: torch.dtype
    vocabulary: int
    count: int
    options: dict[str, float]
    trained: bool


def correctness(bench: Bench) -> Iterator[Row]:
    """Part 1: every op against float64, values and gradients, over poisoned buffers."""
    vocabularies, counts = ((301,), (1, 5)) if bench.tiny else ((1000, 50_257, 128_257), (1, 300, 2500))
    cases = list(itertools.product(DTYPES, vocabularies, counts, OPTIONS, (False, True)))
    for case in itertools.starmap(Case, cases[:: 9 if bench.tiny else 1]):
        for op, errors in (("logprob", _logprob_errors), ("divergence", _divergence_errors)):
            with poisoned():
                found = errors(bench, case)
            worst = max(found.values())
            row = {"name": f"{op} {case}", "worst": worst, "right": worst < LIMITS[case.dtype], **found}
            if not row["right"]:
                print(f"WRONG: {row}", flush=True)
            yield row
    for rows, vocabulary in ((5, 301),) if bench.tiny else ((64, 50_257), (300, 128_257)):
        yield _transport_row(bench, rows, vocabulary)


def _transport_row(bench: Bench, rows: int, vocabulary: int) -> Row:
    """The distances, and their transport plan, in float32 against float64: values and gradients."""
    low, exact = _leaves(
        (bench.normal(rows, 64, dtype=torch.float32), True),
        (bench.normal(vocabulary, 64, dtype=torch.float32, std=0.05), True),
        (bench.normal(rows, 48, dtype=torch.float32).flip(0), False),
        (bench.normal(vocabulary, 48, dtype=torch.float32, std=0.05).flip(0), False),
    )
    with poisoned():
        distances = pairwise_l1(*low, implementation="triton")
        plan_ = sinkhorn(distances, epsilon=0.1, iterations=5, implementation="triton")
    q, p = ((x[0] @ x[1].T / 2).softmax(dim=1) for x in (exact[:2], exact[2:]))
    costs = torch.cdist(q, p, p=1)
    scaled = torch.exp(-costs / 0.1)
    for _ in range(5):
        scaled = scaled / scaled.sum(dim=1, keepdim=True)
        scaled = scaled / scaled.sum(dim=0, keepdim=True)
    found = _errors(
        {"cost": (plan_.cost, (scaled * costs).sum()), "distances": (distances, costs)}, low, exact
    )
    worst = max(found.values())
    row = {"name": f"transport {rows} {vocabulary}", "worst": worst, "right": worst < 1e-3, **found}
    if not row["right"]:
        print(f"WRONG: {row}", flush=True)
    return row


@contextmanager
def poisoned() -> Iterator[None]:
    """Within it, every buffer begins as NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _relative(found: Tensor, expected: Tensor) -> float:
    error = (found.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    return float(torch.nan_to_num(error, nan=torch.inf))


def _leaves(*tensors: tuple[Tensor, bool]) -> tuple[list[Tensor], list[Tensor]]:
    """Each tensor, and its float64 twin; both ask for a gradient where the second says so."""
    low = [x.detach().requires_grad_(trains) for x, trains in tensors]
    return low, [x.detach().double().requires_grad_(x.requires_grad) for x in low]


def _errors(
    values: dict[str, tuple[Tensor, Tensor]], low: list[Tensor], exact: list[Tensor]
) -> dict[str, float]:
    """Relative errors of the values, and of gradients after both sides' first value was summed and differentiated."""
    errors = {
        name: _relative(found.detach(), expected.detach()) for name, (found, expected) in values.items()
    }
    for side in zip(*values.values(), strict=True):
        sum(value.sum() for value in side if value.requires_grad).backward()  # type: ignore[union-attr]
    for index, (mine, theirs) in enumerate(zip(low, exact, strict=True)):
        if mine.grad is not None and theirs.grad is not None:
            errors[f"gradient {index}"] = _relative(mine.grad, theirs.grad)
    return errors


def _head(x: list[Tensor], options: dict[str, float]) -> Tensor:
    logits = x[0] @ x[1].T + x[2]
    cap = options.get("softcap")
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _logprob_errors(bench: Bench, case: Case) -> dict[str, float]:
    dtype, vocabulary, count, options, trained = case
    low, exact = _leaves(
        (bench.normal(count, 64, dtype=dtype), True),
        (bench.normal(vocabulary, 64, dtype=dtype, std=0.2), trained),
        (bench.normal(vocabulary, dtype=dtype), trained),
    )
    labels = torch.arange(count, device=bench.device) * 7919 % vocabulary
    found = linear_logprob(*low[:2], labels, bias=low[2], entropy=True, implementation="triton", **options)
    log = (_head(exact, options) / options.get("temperature", 1.0)).log_softmax(dim=1)
    pairs = {"logps": (found.logps, log.gather(1, labels[:, None]).squeeze(1))}
    if found.entropy is not None:
        pairs["entropy"] = (found.entropy, -(log.exp() * log).sum(dim=1).detach())
    return _errors(pairs, low, exact)


def _divergence_errors(bench: Bench, case: Case) -> dict[str, float]:
    dtype, vocabulary, count, options, trained = case
    low, exact = _leaves(
        (bench.normal(count, 64, dtype=dtype), True),
        (bench.normal(vocabulary, 64, dtype=dtype, std=0.2), trained),
        (bench.normal(vocabulary, dtype=dtype), trained),
        (bench.normal(count, 48, dtype=dtype).flip(0), False),
        (bench.normal(vocabulary, 48, dtype=dtype, std=0.2).flip(0), False),
    )
    more = {"student_softcap": options["softcap"]} if "softcap" in options else options
    found = linear_divergence(
        *low[:2],
        *low[3:],
        student_bias=low[2],
        implementation="triton",
        **more,  # type: ignore[arg-type]
    )
    tau = options.get("temperature", 1.0)
    q = (_head(exact[:3], options) / tau).log_softmax(dim=1)
    p = ((exact[3] @ exact[4].T) / tau).log_softmax(dim=1)
    forward, reverse = (p.exp() * (p - q)).sum(dim=1), (q.exp() * (q - p)).sum(dim=1)
    return _errors(
        {"forward": (found.forward_kl, forward), "reverse": (found.reverse_kl, reverse)}, low, exact
    )


def products(bench: Bench) -> Iterator[Row]:
    """Part 2: cuBLAS alone, by rows of a chunk and parts of a split; this table decides `gpu_plan.MEASURED`."""
    chunks = (5,) if bench.tiny else (512, 768, 1024, 1280, 1408, 1536, 2048, 2341, 2560, 3072, 4096)
    for width, vocabulary in TINY if bench.tiny else SHAPES:
        weight = bench.normal(vocabulary, width, std=0.05)
        for rows in chunks:
            hidden = bench.normal(rows, width)
            logits = torch.empty(rows, padded(vocabulary), device=bench.device, dtype=torch.bfloat16)[
                :, :vocabulary
            ]
            shape = {"rows": rows, "H": width, "V": vocabulary}
            predicted = product_seconds(rows, vocabulary, width, 1, bench.rates)
            yield timed(bench, f"logits {shape}", _mm(hidden, weight.T, logits), predicted, splits=1)
            out = torch.empty_like(hidden)
            for splits in (1, 3) if bench.tiny else (1, 2, 3, 4, 7, 8, 14):
                predicted = product_seconds(rows, width, vocabulary, splits, bench.rates)
                predicted += rows * width * 4 * (splits + 1) / bench.rates.bandwidth if splits > 1 else 0.0
                step = _states(logits, weight, out, splits)
                yield timed(bench, f"states {shape} splits {splits}", step, predicted, splits=splits)
        rows = chunks[-1] if bench.tiny else 2048
        hidden = bench.normal(rows, width)
        for pad in (1, 8, 64):
            room = torch.zeros(rows, vocabulary + pad, device=bench.device, dtype=torch.bfloat16)[
                :, :vocabulary
            ]
            name = f"weight's gradient, rows {rows}, a row of V + {pad}"
            yield timed(bench, name, _mm(room.T, hidden, torch.empty_like(weight)), None)


def _mm(left: Tensor, right: Tensor, out: Tensor) -> Callable[[], object]:
    return lambda: torch.mm(left, right, out=out)


def _states(logits: Tensor, weight: Tensor, out: Tensor, splits: int) -> Callable[[], object]:
    return lambda: states(logits, weight, out, splits)


def row_kernels(bench: Bench) -> Iterator[Row]:
    """Part 3: the row kernel of the log-probs alone, by lanes, warps and grid; bytes a second."""
    shapes = ((64, 4),) if bench.tiny else ((512, 16), (1024, 16), (1024, 32), (256, 8))
    rows, processors = (4, 1) if bench.tiny else (1024, bench.rates.processors)
    for vocabulary in (301,) if bench.tiny else (128_256, 151_936, 50_257):
        for dtype in (torch.float32, torch.bfloat16):
            logits = bench.normal(rows, padded(vocabulary), dtype=dtype)
            moved = rows * vocabulary * (logits.element_size() + 2)
            for (lanes, warps), grid in itertools.product(shapes, (processors, 2 * processors, rows)):
                name = f"row kernel V {vocabulary} {dtype} lanes {lanes} warps {warps} grid {grid}"
                step = partial(_row_kernel, logits, vocabulary, grid, lanes=lanes, warps=warps)
                row = timed(bench, name, step, moved / (ROW_KERNEL_SHARE * bench.rates.bandwidth))
                yield row | {"gb_per_second": moved / row["seconds"] / 1e9}


def _row_kernel(logits: Tensor, vocabulary: int, grid: int, *, lanes: int, warps: int) -> None:
    from alignkit.kernels.linear_logprob.row_kernels import row_kernel

    rows = logits.size(0)
    labels = torch.zeros(rows, dtype=torch.long, device=logits.device)
    found = [torch.empty(rows, device=logits.device) for _ in range(3)]
    gradient = logits.view(torch.bfloat16)
    strides = (logits.stride(0), gradient, gradient.stride(0), None, labels)
    numbers = (rows, vocabulary, logits.size(1), 1.0, 1.0, 1.0)
    flags = dict.fromkeys(("HAS_BIAS", "HAS_SOFTCAP", *map(str.upper, OPTIONAL)), False)
    shape = {"LANES": lanes, "VECTOR": 16 // logits.element_size(), "num_warps": warps}
    row_kernel[(grid,)](
        logits, *strides, *found, *(None for _ in OPTIONAL), *numbers, **flags, GRADIENT=True, **shape
    )


def log_probs(bench: Bench) -> Iterator[Row]:
    """Part 4: linear_logprob, 16-bit and float32 logits, beside its peers; forward and backward, peak memory."""

    def predicted(shape: dict[str, Any], wide: int) -> float:
        trained = shape["head"] == "trained"
        width, vocabulary = shape["hidden"], shape["vocabulary"]
        work = Work(vocabulary, (width,), (width,), wide, wide + 2)
        extra = product_seconds(vocabulary, width, shape["tokens"], 1, bench.rates) if trained else 0.0
        return _planned(work, shape["tokens"], bench.rates) + extra

    yield from _contenders(bench, logprob_bench, predicted)


def divergences(bench: Bench) -> Iterator[Row]:
    """Part 5: linear_divergence beside its peers, pairwise_l1, sinkhorn."""

    def predicted(shape: dict[str, Any], wide: int) -> float | None:
        if shape["head"] == "trained":
            return None
        width = shape["hidden"]
        work = Work(shape["vocabulary"], (width, width), (width,), 2 * wide, 4 * wide + 2)
        return _planned(work, shape["tokens"], bench.rates)

    yield from _contenders(bench, divergence_bench, predicted)
    yield from _contenders(bench, l1_bench, None)
    yield from _contenders(bench, sinkhorn_bench, None)


def _shapes(bench: Bench, module: Any) -> list[dict[str, Any]]:
    if not bench.tiny:
        return list(module.SHAPES["cuda"])
    small = {"tokens": 6, "rows": 6, "vocabulary": 301}
    return [shape | {k: v for k, v in small.items() if k in shape} for shape in module.SHAPES["quick"]]


def _planned(work: Work, tokens: int, rates: Device) -> float:
    chunks = plan(work, 640 * 2**20, rates)
    return chunk_seconds(chunks.rows, chunks.splits, work, rates) * tokens / chunks.rows


def _contenders(
    bench: Bench, module: Any, predicted: Callable[[dict[str, Any], int], float | None] | None
) -> Iterator[Row]:
    """Every contender on every shape; ours twice where logits may be of 16 bits. One that cannot run says why."""
    for shape in _shapes(bench, module):
        flops, moved = module.floor(shape)
        floor = max(flops / bench.rates.flops, moved / bench.rates.bandwidth)
        for name, compute in module.CONTENDERS.items():
            ours = name.startswith("alignkit")
            for logits in ("float32", "bf16") if ours and predicted else ("float32",):
                os.environ["ALIGNKIT_LOGITS"] = logits
                title = f"{module.__name__.rpartition('.')[2]} {name} {shape}" + f" logits {logits}" * ours
                guess = predicted(shape, 4 if logits == "float32" else 2) if ours and predicted else None
                try:
                    tensors = module.inputs(shape, bench.device)

                    def step(compute: Any = compute, tensors: Any = tensors) -> None:
                        for tensor in tensors.values():
                            tensor.grad = None
                        compute(**tensors).backward()

                    row = timed(bench, title, step, guess)
                    yield row | {"floor": floor / row["seconds"], "peak_mb": bench.peak(step)}
                except (ImportError, RuntimeError, AttributeError) as error:
                    yield {"name": title, "skipped": f"{type(error).__name__}: {str(error)[:200]}"}
                finally:
                    os.environ.pop("ALIGNKIT_LOGITS", None)
