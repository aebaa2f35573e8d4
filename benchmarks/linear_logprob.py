"""kernels.linear_logprob against materialised logits and its peers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops import Shape

_CPU = {"hidden": 576, "vocabulary": 49152}
SHAPES: dict[str, list[Shape]] = {
    "quick": [{"tokens": 64, "hidden": 32, "vocabulary": 1000, "head": "trained"}],
    "cpu": [
        {"tokens": tokens, **_CPU, "head": head} for head in ("frozen", "trained") for tokens in (512, 2048)
    ],
    "cuda": [
        {"tokens": 16384, "hidden": hidden, "vocabulary": vocabulary, "head": head}
        for hidden, vocabulary in ((4096, 128256), (896, 151936))
        for head in ("frozen", "trained")
    ],
    "growth": [
        *({"tokens": tokens, **_CPU, "head": "frozen"} for tokens in (1024, 2048, 4096, 8192, 16384)),
        *(
            {"tokens": 2048, "hidden": 576, "vocabulary": vocabulary, "head": "frozen"}
            for vocabulary in (12288, 24576, 98304, 196608)
        ),
    ],
}


def inputs(shape: Shape, device: str) -> dict[str, Tensor]:
    """float32 on a CPU, bfloat16 on a GPU."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device, dtype=dtype)

    hidden = normal(shape["tokens"], shape["hidden"]).requires_grad_()
    weight = (normal(shape["vocabulary"], shape["hidden"]) * 0.05).requires_grad_(shape["head"] == "trained")
    labels = torch.randint(0, shape["vocabulary"], (shape["tokens"],), generator=generator, device=device)
    return {"hidden": hidden, "weight": weight, "labels": labels}


def floor(shape: Shape) -> tuple[float, float]:
    """Two products, three where the head trains; the head and the hidden states read once a product."""
    products = 2 if shape["head"] == "frozen" else 3
    flops = 2.0 * products * shape["tokens"] * shape["hidden"] * shape["vocabulary"]
    return flops, 2.0 * products * shape["hidden"] * (shape["tokens"] + shape["vocabulary"])


def materialised(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """All logits at once."""
    return (hidden @ weight.T).float().log_softmax(dim=-1).gather(1, labels[:, None]).sum()


def trl(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """TRL 1.16's chunked log-probs, as its fused head calls it."""
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

    outputs = _ChunkedLogProbFunction.apply(
        hidden, weight, None, labels, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs",)
    )
    return outputs[0].sum()


def liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Liger's fused cross-entropy, summed, on a GPU; where that cannot run, its DPO loss of as many tokens."""
    if hidden.is_cuda:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        arguments: tuple[Any, ...] = (hidden, weight, labels, None, None, -100, 0.0, 0.0, "sum")
        return LigerFusedLinearCrossEntropyFunction.apply(*arguments)[0]
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    loss = LigerFusedLinearDPOLoss(use_ref_model=False, compiled=False)
    pairs = 2 * max(1, len(hidden) // 1024)
    return loss(weight, hidden.view(pairs, -1, hidden.size(1)), labels.view(pairs, -1))[0]


def torchs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """PyTorch's own, chunked; from 2.13 on."""
    from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

    return -torch.nn.functional.linear_cross_entropy(
        hidden, weight, labels, reduction="sum", options=LinearCrossEntropyOptions()
    )


def cut_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Apple's, on a GPU."""
    from cut_cross_entropy import linear_cross_entropy

    return linear_cross_entropy(hidden, weight, labels, reduction="sum")


def alignkit(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """kernels.linear_logprob."""
    from alignkit.kernels import linear_logprob

    return linear_logprob(hidden, weight, labels).logps.sum()


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "materialised": materialised,
    "trl": trl,
    "liger": liger,
    "torch": torchs,
    "cut_cross_entropy": cut_cross_entropy,
    "alignkit": alignkit,
}
