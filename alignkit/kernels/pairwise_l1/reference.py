"""A short reference of `pairwise_l1` for tests: it makes all probabilities and uses autograd."""

import torch
from torch import Tensor

from alignkit.kernels.head import Operands, compute_dtype


def materialised(student: Operands, teacher: Operands) -> Tensor:
    """Compute the distances D [n, m]."""
    return torch.cdist(_probabilities(student), _probabilities(teacher), p=1)


def _probabilities(operands: Operands) -> Tensor:
    dtype = compute_dtype(operands.weight)
    products = operands.hidden.to(dtype) @ operands.weight.to(dtype).T
    return torch.softmax(operands.transform(products, operands.bias), dim=1)
