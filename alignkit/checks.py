"""Checks that runs make before training: the fused head and faster layers must agree with the model's own logits."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from alignkit.errors import ModelError
from alignkit.kernels.model_head import (
    architecture,
    evaluating,
    fuse_head,
    head_module,
    is_fused,
    measured_head,
)

LENGTH = 8
"""Length in tokens of the two sequences that are compared."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3.2e-2}
"""Dtype of the product with the head -> largest difference in nats that rounding explains, as a share of the largest
logit, or of 1 if that is more. The 16-bit values are four units in the last place of a logit. The float32 value
allows for another order of summation."""
ROUNDINGS_OF_LAYERS = 8
"""Factor on TOLERANCE for layers that round elsewhere, since their differences grow from layer to layer. A wrong
function differs by more."""


def require_exact_head(model: Any, *, device: Any = None) -> None:
    """Raise ModelError unless the fused head agrees with the model's own logits and the model is causal.

    `model` is a causal LM or a `TeacherStudentPair`, of which both models are checked. It may be wrapped by peft or
    sharded, and may already have a fused head. `device` is the device of the inputs; default: the model's. Runs two
    forwards of two sequences of `LENGTH` tokens without gradients. Collective if the model is sharded: every rank
    must call it.
    """
    for side in getattr(model, "sides", (None,)):
        _compare(model, device, {"side": side} if side else {})


def require_same_layers(
    model: Any, plain: Callable[[Any], AbstractContextManager[None]], *, device: Any = None
) -> None:
    """Raise ModelError unless the model's logits agree with those under `plain(model)`, with its own layers.

    Arguments and cost are those of `require_exact_head`; of a `TeacherStudentPair` the student is compared.
    """
    which = {"side": "student"} if hasattr(model, "sides") else {}
    bare = getattr(model, "student", model)
    bare = bare.get_base_model() if isinstance(bare, PeftModel) else bare
    ids = _two_sequences(bare.config).to(device or bare.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False, **which}
    with evaluating(model), torch.no_grad():
        found = model(**inputs).logits
        with plain(model):
            expected = model(**inputs).logits.float()
    limit = ROUNDINGS_OF_LAYERS * TOLERANCE[found.dtype] * max(1.0, float(expected.abs().max()))
    difference = float((found.float() - expected).abs().max())
    if not difference <= limit:
        raise ModelError(
            f"{architecture(bare)}: its logits with faster layers (model.layer_kernels, training.torch_compile) "
            f"differ from those of its own layers by {difference:.2g}, expected at most {limit:.2g}"
        )


def _compare(model: Any, device: Any, which: dict[str, Any]) -> None:
    bare = getattr(model, which["side"]) if which else model
    bare = bare.get_base_model() if isinstance(bare, PeftModel) else bare
    name = architecture(bare)
    head_module(bare)
    ids = _two_sequences(bare.config).to(device or bare.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False, **which}
    with _fused(bare), evaluating(model), torch.no_grad():
        own = model(**inputs).logits.float()
        fused = model(**inputs, labels=ids, fused_lm_head=True).log_probs.float()
        measured = measured_head(bare)
    assert measured is not None  # noqa: S101 - by the second forward
    limit = TOLERANCE[measured.dtype] * max(1.0, float(own.abs().max()))
    _require_causal(name, own, limit)
    expected = own[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    difference = float((fused - expected).abs().max())
    if not difference <= limit:
        raise ModelError(
            f"{name}: the fused head's log-probs differ from the model's own by {difference:.2g} nats, expected at "
            f"most {limit:.2g} in {str(measured.dtype).removeprefix('torch.')}, so this model cannot be trained"
        )


def _require_causal(name: str, logits: Tensor, limit: float) -> None:
    """Raise ModelError unless `logits` [2, L, V] agree before the last token, the only one that differs."""
    moved = float((logits[0, :-1] - logits[1, :-1]).abs().max())
    if not moved <= limit:
        raise ModelError(
            f"{name} is not a causal language model: changing the last token changes earlier logits by {moved:.2g}, "
            f"expected at most {limit:.2g}"
        )


def _two_sequences(config: Any) -> Tensor:
    """[2, LENGTH] token ids that differ in the last one only, without special tokens of the configuration."""
    configs = [config, config.get_text_config()]
    named = [
        value for each in configs for key, value in vars(each).items() if key.endswith(("_id", "_index"))
    ]
    special = {each for value in named for each in (value if isinstance(value, list) else [value])}
    words = configs[1].vocab_size
    plain = [index for index in range(3, min(words, 4096)) if index not in special] or list(range(words))
    chosen = [plain[index * len(plain) // (LENGTH + 1)] for index in range(LENGTH + 1)]
    return torch.tensor([chosen[:LENGTH], [*chosen[: LENGTH - 1], chosen[LENGTH]]])


@contextmanager
def _fused(model: Any) -> Iterator[None]:
    """Give the model a fused head for the duration, unless it already has one."""
    if is_fused(model):
        yield
        return
    before = model.__dict__.get("forward")
    fuse_head(model)
    try:
        yield
    finally:
        del model._fused_head, model.forward  # noqa: SLF001 - ours
        if before is not None:
            model.forward = before
