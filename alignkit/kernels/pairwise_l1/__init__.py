"""L1 distances between the softmax rows of two heads, computed in blocks of the vocabulary.

With q_i and p_j the student's and the teacher's rows, softmax(logits / temperature), and s_ijv = sign(q_iv - p_jv):

    D_ij = sum_v |q_iv - p_jv|          R_ij = sum_v q_iv s_ijv

For an upstream gradient U = dL/dD, with x each side's own logits over the temperature,

    student   dL/dx_iv =  q_iv (sum_j U_ij s_ijv - sum_j U_ij R_ij)
    teacher   dL/dx_jv = -p_jv (sum_i U_ij s_ijv - sum_i U_ij (R_ij - D_ij))

since sum_v p_jv s_ijv = R_ij - D_ij. R is the sum over the whole vocabulary that a softmax's gradient needs. The
forward computes it together with D, so the backward takes a single pass. With frozen heads PyTorch leaves R out: the
sums that it gives, t_i = sum_v q_iv sum_j U_ij s_ijv, are known after the backward's last block, and multiply
sum_v q_iv W_v in the hidden states' gradient. The forward takes two passes: log-sum-exps, then distances. Only one
block of each side's probabilities exists at a time.
"""

# Not `import torch`: this package has a module `torch`, whose import would replace the name.
from torch import Tensor, autocast, compiler

from alignkit import arguments
from alignkit.kernels.backend import Implementation, choose, engine
from alignkit.kernels.head import LogitTransform, Operands, check_shapes, first_columns
from alignkit.kernels.pairwise_l1.compiled import compiled
from alignkit.kernels.pairwise_l1.fused import fused
from alignkit.kernels.pairwise_l1.reference import materialised

__all__ = ["pairwise_l1"]


def pairwise_l1(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_softcap: float | None = None,
    teacher_softcap: float | None = None,
    temperature: float = 2.0,
    implementation: Implementation | None = None,
) -> Tensor:
    """Compute D [n, m], the L1 distances (0 to 2) between softmax(logits / temperature) of student and teacher rows.

    Student hidden [n, Hs] and weight [Vs, Hs], teacher hidden [m, Ht] and weight [Vt, Ht], biases [Vs] and [Vt]. Any
    float dtype: operands are rounded to it, or to autocast's; sums are in float32, or float64 for float64 input.
    Vocabularies of different padding share their first min(Vs, Vt) columns; the others are ignored. A bias of -inf
    removes a column. The soft cap is applied after the scale and before the temperature.

    Gradients are exact and go to every operand that requires one, so detach a frozen teacher's. Where two
    probabilities are equal the subgradient is 0. For distances within one set, pass the student's tensors on both
    sides; the work is then done once. Raises ValueError for shapes that do not match and temperature <= 0.
    """
    arguments.positive("temperature", temperature)
    check_shapes(student_hidden, student_weight, student_bias, "student_")
    check_shapes(teacher_hidden, teacher_weight, teacher_bias, "teacher_")
    of_student = LogitTransform(student_logit_scale, student_softcap, temperature)
    of_teacher = LogitTransform(teacher_logit_scale, teacher_softcap, temperature)
    given = (
        Operands(student_hidden, student_weight, student_bias, of_student),
        Operands(teacher_hidden, teacher_weight, teacher_bias, of_teacher),
    )
    vocabulary = min(student_weight.size(0), teacher_weight.size(0))
    student = first_columns(given[0], vocabulary)
    teacher = student if _same(*given) else first_columns(given[1], vocabulary)
    name = choose(student_hidden, implementation)
    with autocast(student_hidden.device.type, enabled=False):
        if name == "reference":
            return materialised(student, teacher)
        if compiler.is_compiling():
            return compiled(student, teacher, name)
        return fused(student, teacher, engine(__name__, name))


def _same(one: Operands, other: Operands) -> bool:
    tensors = zip(one[:3], other[:3], strict=True)
    return all(left is right for left, right in tensors) and one.transform == other.transform
