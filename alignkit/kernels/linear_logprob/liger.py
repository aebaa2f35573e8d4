"""`linear_logprob` by Liger's `LigerFusedLinearScaledCrossEntropyFunction`, an engine to choose by name.

On a GPU of compute capability 9.0 it is one kernel for bfloat16 and never writes logits to memory. Elsewhere it takes
chunks of 512 tokens in PyTorch, whose logits have the weight's dtype. Its backward computes the logits again: 6 N H V
flops with a frozen head, where ours takes 4, and 8 if the head trains.
"""

from torch import Tensor

from alignkit import extras
from alignkit.kernels.head import Operands
from alignkit.kernels.linear_logprob.records import Request


def check(operands: Operands, request: Request) -> None:
    """Raise ValueError for what Liger's op does not have, AlignkitError if it is not installed."""
    _, _, bias, transform = operands
    extras.require("liger_kernel", extra="bench", purpose="implementation liger")
    lacking = {
        "a bias": bias is not None,
        "a soft cap": transform.softcap is not None,
        f"a logit scale of {transform.scale}": transform.scale <= 0,
        **{name: name in request.outputs for name in ("top1", "confidence")},
    }
    asked = [name for name, wanted in lacking.items() if wanted]
    if asked:
        raise ValueError(
            "implementation liger has log-probs and entropy of a head without bias and soft cap alone: "
            f"it cannot compute {', '.join(asked)}. Leave the choice to the device, or choose torch or triton"
        )


def fused(operands: Operands, labels: Tensor, request: Request) -> dict[str, Tensor]:
    """Compute the values that `request` returns, [N] each. No label may be ignored."""
    # an extra: benchmarks and comparisons
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction

    hidden, weight, _, transform = operands
    if not len(hidden):
        nothing = hidden.sum(dim=1).float()
        return {name: nothing if name == "logps" else nothing.detach() for name in request.returned}
    wanted = "entropy" in request.outputs
    found = LigerFusedLinearScaledCrossEntropyFunction.apply(
        hidden.contiguous(),
        weight.contiguous(),
        labels,
        temperature=transform.temperature / transform.scale,
        return_entropy=wanted,
    )
    losses, *entropy = found if wanted else (found,)
    values: dict[str, Tensor] = {"logps": -losses}
    if wanted:
        values["entropy"] = entropy[0].detach().float()
    return values
