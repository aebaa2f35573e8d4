"""A short reference of `linear_logprob` for tests: it makes all logits and uses autograd."""

import torch
from torch import Tensor

from alignkit.kernels.head import Operands
from alignkit.kernels.linear_logprob.records import Request


def materialised(operands: Operands, labels: Tensor, request: Request) -> dict[str, Tensor]:
    """Compute the values that `request` returns, [N] each."""
    hidden, weight, bias, transform = operands
    x = transform((hidden @ weight.T).float(), bias)
    log = x.log_softmax(dim=1)
    probabilities = log.detach().exp()
    values = {
        "logps": log.gather(1, labels[:, None]).squeeze(1),
        "entropy": torch.special.entr(probabilities).sum(dim=1),
        "top1": x.argmax(dim=1) == labels,
        "confidence": probabilities.amax(dim=1),
    }
    return {name: values[name] for name in request.returned}
