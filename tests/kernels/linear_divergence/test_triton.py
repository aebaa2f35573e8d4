"""Facts of linear_divergence's Triton engine alone: split matmuls, and buffers with garbage in their padding."""

import pytest
import torch

from alignkit.kernels.backend import interpreted
from tests.kernels.linear_divergence.oracle import NAMES, STUDENT, TEACHER, compare, inputs

pytestmark = pytest.mark.skipif(
    not interpreted(), reason="run by tests/kernels/test_interpreted.py, in a process of its own"
)


@pytest.mark.parametrize("training", [("student_hidden", "teacher_hidden"), NAMES])
def test_triton_splits_products_and_reads_no_padding(
    training: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignkit.kernels.linear_divergence import triton as engine

    plan = engine.TritonRows.layout

    def layout(*arguments):
        made = plan(*arguments)
        for buffer in (*made.products.values(), *made.gradients):
            base = buffer._base if buffer._base is not None else buffer
            base.fill_(torch.nan)
        return made._replace(rows=3, block=3, splits=2)

    monkeypatch.setattr(engine.TritonRows, "layout", staticmethod(layout))
    compare(inputs(4, 101), {"temperature": 1.5}, training, STUDENT + TEACHER, implementation="triton")
