"""The quantisers that serve a model's linear layers, and the width of their steps at each weight.

`nf4` and `int8` are bitsandbytes', as vLLM's `--quantization bitsandbytes` and QLoRA apply them: 4 bits in blocks of
64 weights, and 8 bits in rows. `fp8` is e4m3 with one scale a matrix, as vLLM's `--quantization fp8` applies it to
weights. Activations are left alone, and the head is not quantised.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

BLOCK = 64
"""Weights that share a scale under nf4."""
E4M3_LARGEST = 448.0
E4M3_BITS, E4M3_LOWEST = 3, -6
"""Bits of the mantissa, and the exponent of the smallest normal number."""


def _nf4(weight: Tensor) -> Tensor:
    from bitsandbytes import functional  # an extra, and slow to import

    kept, state = functional.quantize_4bit(
        weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=True
    )
    found: Tensor = functional.dequantize_4bit(kept, state)
    return found


def _int8(weight: Tensor) -> Tensor:
    from bitsandbytes import functional  # an extra, and slow to import

    kept, scales, _ = functional.int8_vectorwise_quant(weight.half())
    found: Tensor = functional.int8_vectorwise_dequant(kept, scales)
    return found


def _fp8(weight: Tensor) -> Tensor:
    scale = weight.abs().amax().float().clamp(min=1e-12) / E4M3_LARGEST
    return (weight.float() / scale).to(torch.float8_e4m3fn).float() * scale


def _nf4_half_steps(weight: Tensor) -> Tensor:
    """Half the mean distance of a weight's code to its two neighbours, times its block's largest weight."""
    flat = weight.float().flatten()
    padded = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    largest = padded.abs().amax(dim=1, keepdim=True)
    codes = torch.tensor(NF4, device=weight.device)
    gaps = nn.functional.pad(codes.diff(), (1, 1), mode="constant", value=0)
    half = torch.cat([gaps[1:2], (gaps[1:-2] + gaps[2:-1]) / 2, gaps[-2:-1]]) / 2
    middles = (codes[1:] + codes[:-1]) / 2
    at = torch.bucketize(padded / largest.clamp(min=1e-12), middles)
    return (half[at] * largest).flatten()[: len(flat)].view_as(weight)


def _int8_half_steps(weight: Tensor) -> Tensor:
    return (weight.float().abs().amax(dim=1, keepdim=True) / 127 / 2).expand_as(weight)


def _fp8_half_steps(weight: Tensor) -> Tensor:
    scale = weight.abs().amax().float().clamp(min=1e-12) / E4M3_LARGEST
    exponents = torch.frexp(weight.float() / scale).exponent - 1
    return torch.ldexp((scale / 2).expand_as(weight), exponents.clamp(min=E4M3_LOWEST) - E4M3_BITS)


NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
"""The 16 codes of nf4 (arXiv 2305.14314, appendix E)."""
QUANTISERS: dict[str, Callable[[Tensor], Tensor]] = {"nf4": _nf4, "int8": _int8, "fp8": _fp8}
"""Format -> function from a matrix to the matrix that is served in its place."""
HALF_STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    "nf4": _nf4_half_steps,
    "int8": _int8_half_steps,
    "fp8": _fp8_half_steps,
}
"""Format -> function from a matrix to half the width of the quantiser's step at each weight, float32."""


def quantised(weight: Tensor, name: str) -> Tensor:
    """Return the matrix [d, k] as a server in this format computes with it, in the matrix's own dtype."""
    return QUANTISERS[name](weight.detach().contiguous()).to(weight.dtype)


def half_steps(weight: Tensor, name: str) -> Tensor:
    """Return half the width of the format's step at each weight [d, k], float32: what rounding changes at most."""
    return HALF_STEPS[name](weight.detach())


def served_layers(model: Any) -> Iterator[tuple[str, nn.Linear]]:
    """Yield (name, layer) of the linear layers that a server quantises: the frozen ones but for the head."""
    head = model.get_output_embeddings()
    for name, layer in model.named_modules():
        is_base = isinstance(layer, nn.Linear) and layer is not head and ".lora_" not in name
        if is_base and not layer.weight.requires_grad:
            yield name, layer
