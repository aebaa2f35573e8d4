"""Parts 1 to 5 of `benchmarks.device`: the fused heads. torch and Triton alone; peers where they are installed."""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alignkit.kernels import linear_divergence, linear_logprob, pairwise_l1, sinkhorn
from alignkit.kernels.gpu_plan import (
    PARTS_SHARE,
    ROW_KERNEL_SHARE,
    Device,
    Work,
    chunk_seconds,
    padded,
    plan,
    product_seconds,
)
from alignkit.kernels.linear_logprob.records import OPTIONAL
from alignkit.kernels.products import project, states
from benchmarks import linear_divergence as divergence_bench
from benchmarks import linear_logprob as logprob_bench
from benchmarks import pairwise_l1 as l1_bench
from benchmarks import sinkhorn as sinkhorn_bench
from benchmarks.device import Bench, Row, guarded, timed

SHAPES = ((4096, 128_256), (896, 151_936))
"""(H, V): an 8B's head, and a small model's."""
TINY = ((16, 301),)
CHUNKS = (512, 640, 768, 896, 1024, 1152, 1280, 1536, 2048, 3072, 4096)
"""Rows of a chunk that part 2 tries, besides the planner's."""
SPLITS = {1, 2, 3, 4, 7, 8, 14}
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LIMITS = {torch.bfloat16: 2e-2, torch.float16: 5e-3, torch.float32: 1e-4}
ROUNDED = 4
"""How much further off the results may be where logits are rounded to 16 bits."""
BUFFER = 640 * 2**20
"""Bytes of a chunk's buffer, as the ops allow themselves."""
OPTIONS: tuple[dict[str, float], ...] = ({}, {"softcap": 20.0}, {"temperature": 1.7})


class Case(NamedTuple):
    """One comparison."""

    dtype: torch.dtype
    vocabulary: int
    count: int
    options: dict[str, float]
    trained: bool
    logits: str = "float32"


def correctness(bench: Bench) -> Iterator[Row]:
    """Part 1: every op against float64, values and gradients, over poisoned buffers."""
    vocabularies, counts = ((301,), (1, 5)) if bench.tiny else ((1000, 50_257, 128_257), (1, 300, 2500))
    cases = list(itertools.product(DTYPES, vocabularies, counts, OPTIONS, (False, True)))
    cases = cases[:: 9 if bench.tiny else 1]
    cases += itertools.product(
        DTYPES[:2], vocabularies[-1:], counts[1:2], OPTIONS[:1], (False, True), ("bf16",)
    )
    for case in itertools.starmap(Case, cases):
        for op, errors in (("logprob", _logprob_errors), ("divergence", _divergence_errors)):
            limit = LIMITS[case.dtype] * (ROUNDED if case.logits == "bf16" else 1)
            with logits_of(case.logits), poisoned():
                row = _checked(bench, f"{op} {case}", limit, partial(errors, bench, case))
            yield row
    for rows, vocabulary in ((5, 301),) if bench.tiny else ((64, 50_257), (300, 128_257)):
        errors = partial(_transport_errors, bench, rows, vocabulary)
        yield _checked(bench, f"transport {rows} {vocabulary}", 1e-3, errors)


def _checked(bench: Bench, name: str, limit: float, errors: Callable[[], dict[str, float]]) -> Row:
    """A row of errors relative to float64, and whether all are below the limit."""

    def make() -> Row:
        found = errors()
        worst = max(found.values())
        return {"name": name, "worst": worst, "right": worst < limit, **found}

    row = guarded(bench, name, make)
    if not row.get("right"):
        print(f"WRONG: {row}", flush=True)
    return row


def _transport_errors(bench: Bench, rows: int, vocabulary: int) -> dict[str, float]:
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
    return _errors(
        {"cost": (plan_.cost, (scaled * costs).sum()), "distances": (distances, costs)}, low, exact
    )


@contextmanager
def logits_of(dtype: str) -> Iterator[None]:
    """Within it, the heads' logits have this dtype, float32 or bf16."""
    os.environ["ALIGNKIT_LOGITS"] = dtype
    try:
        yield
    finally:
        del os.environ["ALIGNKIT_LOGITS"]


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
    dtype, vocabulary, count, options, trained, _ = case
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
    dtype, vocabulary, count, options, trained, _ = case
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
    """Part 2: cuBLAS alone, by rows of a chunk and parts of a split; its best rows decide `gpu_plan.MEASURED`."""
    for width, vocabulary in TINY if bench.tiny else SHAPES:
        weight = bench.normal(vocabulary, width, std=0.05)
        planned = plan(_work(width, vocabulary), BUFFER, bench.rates)
        taken: dict[tuple[int, int], float] = {}
        for rows in (5,) if bench.tiny else sorted({planned.rows, *CHUNKS}):
            room = torch.empty(rows, padded(vocabulary), device=bench.device)
            yield from _products_of_a_chunk(bench, weight, room, {1, planned.splits}, taken)
        if any(math.isfinite(seconds) for seconds in taken.values()):
            yield _best_chunk(bench, width, vocabulary, taken)
        rows = 5 if bench.tiny else 2048
        hidden = bench.normal(rows, width)
        for pad in (1, 8, 64):
            wide = bench.normal(rows, vocabulary + pad)[:, :vocabulary]
            name = f"weight's gradient, rows {rows}, a row of V + {pad}"
            step = partial(torch.mm, wide.T, hidden, out=torch.empty_like(weight))
            yield guarded(bench, name, partial(timed, bench, name, step, None))


def _products_of_a_chunk(
    bench: Bench, weight: Tensor, room: Tensor, splits: set[int], taken: dict[tuple[int, int], float]
) -> Iterator[Row]:
    """Both products of a chunk, as the op runs them: a gradient lies in the first half of its row of logits.

    `taken` gets the seconds of both for each number of splits; infinite where one failed.
    """
    (vocabulary, width), rows = weight.shape, room.size(0)
    hidden, gradient = bench.normal(rows, width), room.view(torch.bfloat16)[:, :vocabulary]
    shape, logits_seconds = f"rows {rows} H {width} V {vocabulary}", math.inf
    for dtype, logits in (("bf16", gradient), ("float32", room[:, :vocabulary])):
        name, step = f"logits {dtype} {shape}", partial(project, hidden, weight, logits)
        predicted = product_seconds(rows, vocabulary, width, 1, bench.rates)
        row = guarded(bench, name, partial(timed, bench, name, step, predicted, splits=1))
        logits_seconds = row.get("seconds", math.inf)  # of float32, which come last
        yield row
    gradient.normal_()  # zeros or NaN would cost less power, and so less time
    out = torch.empty_like(hidden)
    for parts in sorted(splits | ({3} if bench.tiny else SPLITS)):
        predicted = product_seconds(rows, width, vocabulary, parts, bench.rates)
        predicted += rows * width * 4 * (parts + 1) / bench.rates.bandwidth if parts > 1 else 0.0
        name, step = f"states {shape} splits {parts}", partial(states, gradient, weight, out, parts)
        row = guarded(bench, name, partial(timed, bench, name, step, predicted, splits=parts))
        taken[rows, parts] = logits_seconds + row.get("seconds", math.inf)
        yield row


def _work(width: int, vocabulary: int) -> Work:
    """The work of log-probs with a frozen head and float32 logits, as the op describes it."""
    return Work(vocabulary, (width,), (width,), 4, 6)


def _best_chunk(bench: Bench, width: int, vocabulary: int, taken: dict[tuple[int, int], float]) -> Row:
    """The measured rows and splits with the least time per token that fit, next to the planner's."""
    work = _work(width, vocabulary)
    row_kernel = vocabulary * work.moved_bytes / (ROW_KERNEL_SHARE * bench.rates.bandwidth)
    a_token = {
        (rows, splits): seconds / rows + row_kernel
        for (rows, splits), seconds in taken.items()
        if rows * padded(vocabulary) * work.buffer_bytes <= BUFFER
        and (splits == 1 or splits * rows * width * 4 <= PARTS_SHARE * BUFFER)
    }
    best, planned = min(a_token, key=lambda chunk: a_token[chunk]), plan(work, BUFFER, bench.rates)
    mine = a_token.get((planned.rows, planned.splits))
    return {
        "name": f"best chunk H {width} V {vocabulary}",
        "measured": best,
        "planned": (planned.rows, planned.splits),
        "planned_over_best": None if mine is None else mine / a_token[best],
        "entry": f"MEASURED[{work}, {BUFFER}] = {best}",
    }


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
                predicted = moved / (ROW_KERNEL_SHARE * bench.rates.bandwidth)
                row = guarded(bench, name, partial(timed, bench, name, step, predicted))
                if "seconds" in row:
                    row["gb_per_second"] = moved / row["seconds"] / 1e9
                yield row


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
    chunks = plan(work, BUFFER, rates)
    return chunk_seconds(chunks.rows, chunks.splits, work, rates) * tokens / chunks.rows


def _contenders(
    bench: Bench, module: Any, predicted: Callable[[dict[str, Any], int], float | None] | None
) -> Iterator[Row]:
    """Every contender on every shape, ours first and twice where logits may be of 16 bits.

    A peer that cannot run says why; that ours cannot is an error.
    """
    for shape in _shapes(bench, module):
        for name, compute in sorted(module.CONTENDERS.items(), key=lambda item: not _ours(item[0])):
            for logits in ("float32", "bf16") if _ours(name) and predicted else ("float32",):
                title = f"{module.__name__.rpartition('.')[2]} {name} {shape}" + f" logits {logits}" * _ours(
                    name
                )
                guess = (
                    predicted(shape, 4 if logits == "float32" else 2) if _ours(name) and predicted else None
                )
                with logits_of(logits):
                    make = partial(_contender, bench, module, shape, compute, title=title, guess=guess)
                    row = guarded(bench, title, make, ours=_ours(name))
                yield row
                bench.settle()


def _ours(name: str) -> bool:
    return name.startswith("alignkit")


def _contender(
    bench: Bench, module: Any, shape: dict[str, Any], compute: Any, *, title: str, guess: float | None
) -> Row:
    """Forward and backward of one contender: seconds, share of the lower bound, peak memory."""
    flops, moved = module.floor(shape)
    floor = max(flops / bench.rates.flops, moved / bench.rates.bandwidth)
    tensors = module.inputs(shape, bench.device)

    def step() -> None:
        for tensor in tensors.values():
            tensor.grad = None
        compute(**tensors).backward()

    row = timed(bench, title, step, guess)
    return row | {"floor": floor / row["seconds"], "peak_mb": bench.peak(step)}
