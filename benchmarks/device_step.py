"""Parts 6 and 7 of `benchmarks.device`: forward and backward of a Llama of given widths under LoRA, random weights.

Needs transformers and peft. The loss is the sum of the last hidden states: the head has parts of its own.
"""

import importlib.util
import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from benchmarks.device import Bench, Row, guarded, timed

WIDE = {
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
"""An 8B's layers, eight of them."""
NARROW = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
"""A 0.5B's layers."""
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PRECISIONS = ("float32 adapters", "autocast", "no input cast")


def large(bench: Bench) -> Iterator[Row]:
    """Part 6: a step at an 8B's widths, 8,192 tokens: precision, mask, what takes longest; compiled layers last."""
    if absent := _absent():
        yield {"name": "steps", "skipped": absent}
        return
    yield from _steps(bench, WIDE, (8192,))
    yield from _profile(bench, WIDE, 8192)
    if not bench.tiny:  # each compiles for a good part of a minute
        yield from _steps(bench, WIDE, (8192,), masks=(False,), compiled=True)


def small(bench: Bench) -> Iterator[Row]:
    """Part 7: a step at a 0.5B's widths, 2,048 and 16,384 tokens: bound by launches or not."""
    if absent := _absent():
        yield {"name": "steps", "skipped": absent}
        return
    yield from _steps(bench, NARROW, (2048, 16_384))


def _absent() -> str:
    """The packages that these parts need and that are not installed; empty if there are none."""
    absent = [name for name in ("transformers", "peft") if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def _steps(
    bench: Bench,
    widths: dict[str, int],
    tokens: tuple[int, ...],
    *,
    masks: tuple[bool, ...] = (False, True),
    compiled: bool = False,
) -> Iterator[Row]:
    count, widths = ((16,), TINY) if bench.tiny else (tokens, widths)
    precisions = PRECISIONS[:1] if bench.tiny else PRECISIONS
    for size, precision, padded in itertools.product(count, precisions, masks):
        name = f"step {size} tokens, {precision}, {'padded mask' if padded else 'causal'}{', compiled' * compiled}"
        make = partial(
            _timed_step, bench, widths, size, precision, padded=padded, compiled=compiled, name=name
        )
        yield guarded(bench, name, make)
        bench.settle()


def _timed_step(
    bench: Bench,
    widths: dict[str, int],
    size: int,
    precision: str,
    *,
    padded: bool,
    compiled: bool,
    name: str,
) -> Row:
    flops = 4 * _linear_weights(widths) * size  # forward, and back to the inputs alone
    model = _model(bench, widths, precision)
    if compiled:
        for layer in model.get_base_model().layers:
            layer.compile()
    step = partial(_step, model, _inputs(bench, size, padded=padded), precision)
    row = timed(bench, name, step, None)
    return row | {"floor": flops / bench.rates.flops / row["seconds"], "peak_mb": bench.peak(step)}


def _linear_weights(widths: dict[str, int]) -> float:
    h, f, layers = widths["hidden_size"], widths["intermediate_size"], widths["num_hidden_layers"]
    kv = h * widths["num_key_value_heads"] / widths["num_attention_heads"]
    return layers * (2 * h * h + 2 * h * kv + 3 * h * f)


def _model(bench: Bench, widths: dict[str, int], precision: str) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    with torch.device(bench.device):
        base = LlamaModel(LlamaConfig(vocab_size=1024, **widths)).to(torch.bfloat16)
    model = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear"))
    if precision == "no input cast":
        for module in model.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
        model.to(torch.bfloat16)
    return model.train()


def _inputs(bench: Bench, tokens: int, *, padded: bool) -> dict[str, torch.Tensor]:
    rows = 1 if bench.tiny else max(1, tokens // 1024)
    ids = torch.arange(tokens, device=bench.device).view(rows, -1) % 1000
    mask = torch.ones_like(ids)
    if padded:
        mask[:, -ids.size(1) // 4 :] = 0
    return {"input_ids": ids} | ({"attention_mask": mask} if padded else {})


def _step(model: Any, inputs: dict[str, torch.Tensor], precision: str) -> None:
    model.zero_grad(set_to_none=True)
    device = inputs["input_ids"].device.type
    with torch.autocast(device, torch.bfloat16) if precision == "autocast" else nullcontext():
        states = model(**inputs, use_cache=False).last_hidden_state
    states.float().sum().backward()


def _profile(bench: Bench, widths: dict[str, int], tokens: int) -> Iterator[Row]:
    """The fifteen kernels that took the most, of the slowest and of the fastest precision."""
    for precision in PRECISIONS[:1] if bench.tiny else (PRECISIONS[0], PRECISIONS[-1]):
        name = f"profile, {precision}"
        widths, tokens = (TINY, 16) if bench.tiny else (widths, tokens)
        yield guarded(bench, name, partial(_longest, bench, widths, tokens, precision, name))
        bench.settle()


def _longest(bench: Bench, widths: dict[str, int], tokens: int, precision: str, name: str) -> Row:
    from torch.profiler import ProfilerActivity, profile

    model, inputs = _model(bench, widths, precision), _inputs(bench, tokens, padded=False)
    _step(model, inputs, precision)
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (bench.device == "cuda")
    with profile(activities=kinds) as profiler:
        _step(model, inputs, precision)
    events = profiler.key_averages()
    taken = {event.key: event.self_device_time_total or event.self_cpu_time_total for event in events}
    top = sorted(taken.items(), key=lambda item: -item[1])[:15]
    return {"name": name, "microseconds": {key: round(value) for key, value in top}}
