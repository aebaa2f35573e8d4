"""Faster decoder layers: Liger's kernels for norms, gates and rotary positions, or `torch.compile` of each layer.

Both change how a layer computes, not what it holds: modules, names of parameters and state dicts stay the same, so
adapters, checkpoints and the fused head do not notice. The head is never replaced.
"""

import os
import shutil
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from alignkit.errors import ModelError, nearest

ARCHITECTURES = (
    "gemma",
    "gemma2",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
"""Names (`model_type`) of the architectures whose layers were compared with and without Liger's kernels."""
LAYERS_ONLY = {"cross_entropy": False, "fused_linear_cross_entropy": False}
"""Liger's options that keep it from replacing the forward of the whole model, which the fused head needs."""
ROTARY = "apply_rotary_pos_emb"
"""Name of the function that every supported architecture calls for its rotary positions."""
SILU = ("silu", "swish")
BACKEND = "inductor"
"""Compiler of torch.compile, by its name there."""
MOST_GRAPHS = 64
"""Graphs of one layer before it runs uncompiled: with and without gradient, adapter, mask and dropout."""


def kernel_refusals(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the reasons why Liger's kernels cannot run a model with this config.json, one clause each."""
    name = str(config.get("model_type"))
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        yield f"liger has no kernels for {name}: expected one of {known}{nearest(name, ARCHITECTURES)}"
        return
    activation = config.get("hidden_act", "silu")
    if not name.startswith("gemma") and activation not in SILU:
        yield f"liger's gate has the activation silu, but the model has {activation}"


def compiler_missing(*, gpu: bool) -> str | None:
    """Return the name of the compiler that `torch.compile` needs and that is not installed; None if it is there."""
    variable, names = ("CC", ("gcc", "clang", "cc")) if gpu else ("CXX", ("g++", "clang++"))
    given = os.environ.get(variable)
    wanted = (given,) if given else names
    return None if any(shutil.which(name) for name in wanted) else " or ".join(wanted)


class Rotary:
    """A model's function for rotary positions that takes Liger's kernel where Triton runs, and its own elsewhere."""

    def __init__(self, plain: Any, kernel: Any) -> None:
        self.plain, self.kernel = plain, kernel
        self.on = True
        """Whether the kernel may be taken."""

    def __call__(self, q: Any, *args: Any, **kwargs: Any) -> Any:
        """Rotate q and k [B, heads, L, D], as the model's own function does."""
        from alignkit.kernels.backend import interpreted  # saves torch at start-up

        chosen = self.kernel if self.on and (q.is_cuda or interpreted()) else self.plain
        return chosen(q, *args, **kwargs)


def use_liger(model: Any, *, field: str = "model.layer_kernels") -> None:
    """Give the layers of `model`, a transformers causal LM without peft's wrapper, the kernels of liger-kernel.

    Replaces forwards of this model's own modules, and the rotary function of its architecture. Models that are made
    later keep the layers of transformers. Raises ModelError, which names `field`, for an unknown architecture.
    """
    if reasons := list(kernel_refusals(model.config.to_dict())):
        raise ModelError(f"{field}: {'; '.join(reasons)}")
    from transformers.integrations.liger import apply_liger_kernel  # saves transformers at start-up

    names = vars(sys.modules[type(model).__module__])
    before = dict(names)
    apply_liger_kernel(model, LAYERS_ONLY)
    kernel, own = names[ROTARY], before[ROTARY]
    names.update(before)  # liger would also replace the classes of models that are made later
    if not isinstance(own, Rotary):
        names[ROTARY] = Rotary(own, kernel)


def has_liger(model: Any) -> bool:
    """Return whether layers of the model, which may be wrapped, run Liger's kernels."""
    return any(_is_ligers(module) for module in model.modules())


@contextmanager
def plain_layers(model: Any) -> Iterator[None]:
    """Run the model with transformers' own layers, neither replaced nor compiled, for the duration."""
    import torch  # saves torch at start-up

    replaced = [(module, module.__dict__.pop("forward")) for module in model.modules() if _is_ligers(module)]
    rotaries = [rotary for rotary in _rotaries(model) if rotary.on]
    for rotary in rotaries:
        rotary.on = False
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, forward in replaced:
            module.forward = forward
        for rotary in rotaries:
            rotary.on = True


def _is_ligers(module: Any) -> bool:
    forward = module.__dict__.get("forward")
    return getattr(forward, "__module__", "").startswith("liger_kernel.")


def _rotaries(model: Any) -> list[Rotary]:
    homes = {type(module).__module__ for module in model.modules()}
    found = (vars(sys.modules[home]).get(ROTARY) for home in homes)
    return [one for one in found if isinstance(one, Rotary)]


def compile_layers(model: Any) -> int:
    """Compile each decoder layer of `model`, which may be wrapped, at its first call; return how many were not yet.

    Layers of one kind share their graphs, whose batch sizes and lengths are symbols. `generate` runs uncompiled: its
    cache grows with every token, and each growth could be a new graph. Raises ModelError if no layer is found.
    """
    from transformers import PreTrainedModel  # saves transformers at start-up

    from alignkit.kernels.upstream import is_compiled

    layers = _decoder_layers(model)
    if not layers:
        raise ModelError("training.torch_compile: found no decoder layers that can be compiled in this model")
    fresh = [layer for layer in layers if not is_compiled(layer)]
    for layer in fresh:
        layer.compile(backend=BACKEND, dynamic=True, recompile_limit=MOST_GRAPHS)
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.can_generate() and "generate" not in vars(module):
            _generate_uncompiled(module)
    return len(fresh)


def layers_of(model: Any) -> str | None:
    """Return how the layers of the model, which may be wrapped, run: "liger", "compiled", or None for their own."""
    from alignkit.kernels.upstream import is_compiled  # saves torch at start-up

    if has_liger(model):
        return "liger"
    return "compiled" if any(map(is_compiled, _decoder_layers(model))) else None


def _decoder_layers(model: Any) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer  # saves transformers at start-up

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _generate_uncompiled(model: Any) -> None:
    import torch  # saves torch at start-up

    own = model.generate

    def generate(_self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return own(*args, **kwargs)

    model.generate = types.MethodType(generate, model)
