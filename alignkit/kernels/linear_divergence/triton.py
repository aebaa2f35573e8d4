"""The GPU engine of `linear_divergence`: cuBLAS matmuls, one kernel for a row's values, another for a gradient.

`gpu_plan` chooses the chunk size. Logits are float32 unless ALIGNKIT_LOGITS says otherwise. The last gradient of a
chunk overwrites its own side's logits; in 16 bits it takes the first half of each row.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from alignkit.kernels.backend import logits_dtype, processors
from alignkit.kernels.gpu_plan import Device, Work, padded, plan
from alignkit.kernels.head import Operands
from alignkit.kernels.linear_divergence import cost
from alignkit.kernels.linear_divergence.records import HeadProduct, Layout, Name, Request, logit_gradient
from alignkit.kernels.linear_divergence.row_kernels import gradient_kernel, values_kernel

LANES, VALUES_WARPS = 512, 16
GRADIENT_BLOCK, GRADIENT_WARPS = 2048, 16

STATISTICS = (
    *(
        "student_max",
        "student_log_sum",
        "student_log_sum_one",
        "student_entropy",
        "student_ce",
        "student_top1",
    ),
    *(
        "teacher_max",
        "teacher_log_sum",
        "teacher_log_sum_one",
        "teacher_entropy",
        "teacher_ce",
        "teacher_top1",
    ),
    *("forward_kl", "reverse_kl"),
)
"""Rows of the [14, c] output of `values_kernel`. `log_sum` is of e^u, `log_sum_one` of e^(x - a) at temperature 1."""


class TritonRows:
    """`records.RowBlock` in Triton."""

    def __init__(
        self,
        products: Mapping[Name, Tensor],
        labels: Tensor,
        sides: Mapping[Name, Operands],
        request: Request,
    ) -> None:
        self.products, self.labels, self.sides = products, labels.contiguous(), sides
        self.request = request
        student, teacher = sides["student"], sides["teacher"]
        count, self.vocabulary = products["student"].shape
        self.width = padded(self.vocabulary)
        self.biases = {name: _bias(side, self.width) for name, side in sides.items()}
        self.statistics = torch.empty(len(STATISTICS), count, dtype=torch.float32, device=labels.device)
        values_kernel[self._grid()](
            products["student"],
            products["teacher"],
            products["student"].stride(0),
            products["teacher"].stride(0),
            self.biases["student"],
            self.biases["teacher"],
            self.labels,
            self.statistics,
            count,
            self.vocabulary,
            self.width,
            float(student.transform.scale),
            float(teacher.transform.scale),
            float(student.transform.softcap or 1.0),
            float(teacher.transform.softcap or 1.0),
            1 / request.temperature,
            STUDENT_BIAS=student.bias is not None,
            TEACHER_BIAS=teacher.bias is not None,
            STUDENT_SOFTCAP=student.transform.softcap is not None,
            TEACHER_SOFTCAP=teacher.transform.softcap is not None,
            AT_ONE=not request.plain and (request.labelled or request.separate_entropy),
            ENTROPY_AT_ONE=request.separate_entropy,
            TOP1=request.top1,
            LANES=LANES,
            VECTOR=16 // max(z.element_size() for z in products.values()),
            num_warps=VALUES_WARPS,
        )
        self.values = dict(zip(STATISTICS, self.statistics, strict=True))
        self.values["teacher_reverse_kl"] = self.values["reverse_kl"]

    @staticmethod
    def layout(sides: Mapping[Name, Operands], count: int, products: Sequence[HeadProduct]) -> Layout:
        """See `RowBlock.layout`."""
        weights = {name: side.weight for name, side in sides.items()}
        vocabulary = weights["student"].size(0)
        wide = sum(logits_dtype(weight).itemsize for weight in weights.values())
        narrow = [weights[product.side].element_size() for product in products]
        work = Work(
            vocabulary,
            tuple(weight.size(1) for weight in weights.values()),
            tuple(weights[product.side].size(1) for product in products),
            buffer_bytes=wide + sum(narrow[:-1]),
            moved_bytes=wide + sum(wide + size for size in narrow),
        )
        device = Device(processors(weights["student"]))
        rows, splits, _ = plan(work, cost.GPU_BUFFER_BYTES, device)
        rows = min(rows, max(count, 1))

        def room(weight: Tensor, dtype: torch.dtype) -> Tensor:
            return weight.new_empty(rows, padded(vocabulary), dtype=dtype)

        logits = {name: room(weight, logits_dtype(weight)) for name, weight in weights.items()}
        gradients = [room(weights[product.side], weights[product.side].dtype) for product in products[:-1]]
        # when the last gradient is computed, its side's logits are no longer needed
        gradients += [logits[p.side].view(weights[p.side].dtype) for p in products[-1:]]
        return Layout(
            rows,
            rows,
            splits,
            {name: buffer[:, :vocabulary] for name, buffer in logits.items()},
            [gradient[:, :vocabulary] for gradient in gradients],
        )

    def gradient(self, side: Name, weights: Mapping[str, Tensor], out: Tensor) -> None:
        """See `RowBlock.gradient`."""
        other: Name = "teacher" if side == "student" else "student"
        own_head, other_head = self.sides[side].transform, self.sides[other].transform
        found = logit_gradient(side, weights, self.values)
        nothing = torch.zeros_like(self.statistics[0])
        gradient_kernel[self._grid()](
            self.products[side],
            self.products[other],
            self.products[side].stride(0),
            self.products[other].stride(0),
            self.biases[side],
            self.biases[other],
            self.labels,
            self._of(side),
            self._of(other),
            torch.stack([nothing if x is None else x.float() for x in found]),
            out,
            out.stride(0),
            out.size(0),
            self.vocabulary,
            self.width,
            float(own_head.scale),
            float(other_head.scale),
            float(own_head.softcap or 1.0),
            float(other_head.softcap or 1.0),
            1 / self.request.temperature,
            OWN_BIAS=self.sides[side].bias is not None,
            OTHER_BIAS=self.sides[other].bias is not None,
            OWN_SOFTCAP=own_head.softcap is not None,
            OTHER_SOFTCAP=other_head.softcap is not None,
            TOWARD=found.toward is not None,
            AWAY=found.away is not None,
            AT_ONE=found.label is not None,
            BLOCK=GRADIENT_BLOCK,
            num_warps=GRADIENT_WARPS,
        )

    def _grid(self) -> tuple[int]:
        return (min(len(self.labels), 2 * processors(self.labels)),)

    def _of(self, side: Name) -> Tensor:
        return self.statistics[STATISTICS.index(f"{side}_max") :]


def _bias(side: Operands, width: int) -> Tensor | None:
    """The bias padded to the length of a buffer row, since the kernels read both together."""
    return None if side.bias is None else pad(side.bias.detach(), (0, width - side.bias.size(0)))


ENGINE = TritonRows
