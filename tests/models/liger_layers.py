"""Prints how far each architecture's logits and gradients move under Liger's kernels; run with TRITON_INTERPRET=1."""

import json
from typing import Any

import numpy as np
import torch
import triton.language as tl
from liger_kernel.ops import geglu, rms_norm
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from triton.runtime import interpreter

from alignkit.models import layers

IDS = torch.tensor([[5, 9, 3, 7, 11, 4, 2], [8, 1, 3, 6, 12, 4, 9]])
POSITIONS = torch.tensor([[0, 1, 2, 3, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6]])
"""Those of a row of text, and of a packed row whose two answers follow one prompt."""


def as_compiled_kernels_get_them(argument: Any) -> Any:
    """Make a float a float32 scalar, on which a kernel may call `to`. The interpreter leaves Python's own."""
    if isinstance(argument, float):
        handle = interpreter.TensorHandle(np.array([argument], dtype=np.float32), tl.float32)
        return tl.tensor(handle, tl.float32)
    return converted(argument)


def rsqrt(x: Any) -> Any:
    """Compute 1 / sqrt(x) by Triton's own function, which the interpreter replaces while a kernel runs."""
    return tl.rsqrt(x)


def tanh(x: Any) -> Any:
    """Compute tanh(x) by Triton's own functions."""
    return 2 * tl.sigmoid(2 * x) - 1


rms_norm.rsqrt, geglu.tanh = rsqrt, tanh  # the interpreter has no functions of libdevice
converted, interpreter._implicit_cvt = interpreter._implicit_cvt, as_compiled_kernels_get_them


def measure(name: str) -> dict[str, float]:
    """Largest differences of a tiny random model; gradients relative to the largest one."""
    config = AutoConfig.for_model(
        name,
        vocab_size=48,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for weight in model.parameters():
        if weight.dim() == 1:  # norms whose weights are all one would hide an error
            torch.nn.init.normal_(weight, mean=1.0, std=0.3)

    def run() -> tuple[Tensor, Tensor]:
        model.zero_grad()
        logits = model(input_ids=IDS, position_ids=POSITIONS).logits
        logits.log_softmax(dim=-1)[..., 5].sum().backward()
        return logits.detach(), torch.cat([weight.grad.flatten() for weight in model.parameters()])

    own, gradients = run()
    layers.use_liger(model)
    found, found_gradients = run()
    with layers.plain_layers(model):
        plain, _ = run()
    return {
        "replaced": sum(
            layers.has_liger(module) for module in model.modules() if not list(module.children())
        ),
        "logits": float((found - own).abs().max()),
        "gradients": float((found_gradients - gradients).abs().max() / gradients.abs().max()),
        "plain": float((plain - own).abs().max()),
    }


if __name__ == "__main__":
    print(json.dumps({name: measure(name) for name in layers.ARCHITECTURES}))
