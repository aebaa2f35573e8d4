"""kernels.linear_divergence against materialised logits, TRL's JSD and Liger's.

The peers make one generalised JSD (beta 0.5). `alignkit` makes both KLs and both entropies, weighed by BD-KD's gate.
`materialised` is that JSD of all logits at once, `materialised, both KLs` what `alignkit` makes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.ops import Shape, two_heads

_CPU = {"hidden": 576, "vocabulary": 49152}
SHAPES: dict[str, list[Shape]] = {
    "quick": [{"tokens": 64, "hidden": 32, "vocabulary": 1000, "head": "trained"}],
    "cpu": [
        {"tokens": tokens, **_CPU, "head": head}
        for tokens, head in ((512, "frozen"), (2048, "frozen"), (2048, "trained"))
    ],
    "cuda": [
        {"tokens": 16384, "hidden": hidden, "vocabulary": vocabulary, "head": head}
        for hidden, vocabulary in ((4096, 128256), (896, 151936))
        for head in ("frozen", "trained")
    ],
    "growth": [
        *({"tokens": tokens, **_CPU, "head": "frozen"} for tokens in (1024, 2048, 4096)),
        *(
            {"tokens": 1024, "hidden": 576, "vocabulary": vocabulary, "head": "frozen"}
            for vocabulary in (12288, 24576, 98304)
        ),
    ],
}


def inputs(shape: Shape, device: str) -> dict[str, Tensor]:
    """Both models' hidden states and heads."""
    return two_heads(shape["tokens"], shape, device)


def floor(shape: Shape) -> tuple[float, float]:
    """Both heads' logits and one product a gradient; the heads and the hidden states read once a product."""
    products = 3 if shape["head"] == "frozen" else 4
    flops = 2.0 * products * shape["tokens"] * shape["hidden"] * shape["vocabulary"]
    return flops, 2.0 * products * shape["hidden"] * (shape["tokens"] + shape["vocabulary"])


def materialised(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    """The JSD of all logits at once."""
    q = (student_hidden @ student_weight.T).float().log_softmax(dim=1)
    p = (teacher_hidden @ teacher_weight.T).float().log_softmax(dim=1)
    middle = torch.logaddexp(q, p) - torch.tensor(2.0).log()
    kl = [torch.nn.functional.kl_div(middle, log, reduction="sum", log_target=True) for log in (q, p)]
    return (kl[0] + kl[1]) / 2


def materialised_kls(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    """Both KLs and both entropies of all logits at once."""
    from alignkit.losses.bd_kd import bd_kd_loss

    return bd_kd_loss(student_hidden @ student_weight.T, teacher_hidden @ teacher_weight.T).student.sum()


def trl(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    """TRL 1.16's chunked JSD."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    divergence, _ = ChunkedDivergenceFunction.apply(
        student_hidden, student_weight, None, teacher_hidden, teacher_weight, None, 0.5
    )
    return divergence.sum()


def liger(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor
) -> Tensor:
    """Liger's chunked JSD, the soft loss alone."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False)
    labels = torch.zeros(student_hidden.size(0), dtype=torch.long, device=student_hidden.device)
    return loss(student_hidden, student_weight, teacher_hidden, teacher_weight, labels)


def alignkit(**operands: Tensor) -> Tensor:
    """kernels.linear_divergence, BD-KD's loss as its objective."""
    from alignkit.kernels import Divergences, linear_divergence
    from alignkit.losses.bd_kd import balance

    def objective(d: Divergences) -> Tensor:
        return balance(d.forward_kl, d.reverse_kl, d.student_entropy, d.teacher_entropy).student

    return linear_divergence(**operands, objective=objective).loss.sum()  # type: ignore[union-attr]


CONTENDERS: dict[str, Callable[..., Tensor]] = {
    "materialised": materialised,
    "materialised, both KLs": materialised_kls,
    "trl": trl,
    "liger": liger,
    "alignkit": alignkit,
}
