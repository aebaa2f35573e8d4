"""The chunk planner against a table worked out by hand, and what must hold of every plan."""

import sys
from runpy import run_path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkit.kernels import gpu_plan
from alignkit.kernels.gpu_plan import Device, Work, plan, product_seconds

BUDGET = 640 * 2**20


def log_probs(width: int, vocabulary: int, *, wide: bool = False) -> Work:
    return Work(vocabulary, (width,), (width,), 4 if wide else 2, 6 if wide else 4)


@pytest.mark.parametrize(
    ("work", "rows", "splits", "share"),
    [
        (log_probs(4096, 128_256), 1408, 3, 0.94),
        (log_probs(896, 151_936), 2048, 7, 0.78),
        (log_probs(4096, 128_256, wide=True), 1280, 4, 0.90),
        (log_probs(896, 151_936, wide=True), 1024, 14, 0.71),
        (Work(128_256, (4096, 4096), (4096,), 4, 10), 1280, 4, 0.90),
        (Work(151_936, (896, 896), (896,), 4, 10), 1024, 14, 0.69),
        (Work(128_256, (4096,), (), 2, 2), 640, 1, 0.94),
    ],
)
def test_the_plan_is_the_table_s(work: Work, rows: int, splits: int, share: float) -> None:
    """`share`: of the floor, 2 H V flops a product and token."""
    found = plan(work, BUDGET)
    floor = 2 * sum(work.logit_widths + work.state_widths) * work.vocabulary / Device().flops
    assert (found.rows, found.splits) == (rows, splits)
    assert floor / (found.seconds / found.rows) == pytest.approx(share, abs=0.006)


def test_a_product_takes_whole_waves() -> None:
    """[1536, 2816] is 132 tiles of 128 x 256, one a processor; one more row begins a second wave of smaller tiles."""
    device = Device(132, 132.0, 1.0)
    assert product_seconds(1536, 2816, 960, 1, device) == 2 * 128 * 256 * (960 + 48)
    assert product_seconds(1537, 2816, 960, 1, device) == 2 * (2 * 128 * 192 * (960 + 48) * 1.03)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 300_000), st.integers(1, 9000), st.integers(1, 9000), st.booleans(), st.integers(0, 2**31)
)
def test_a_plan_fits_its_budget(vocabulary: int, width: int, other: int, backward: bool, budget: int) -> None:
    work = Work(vocabulary, (width, other), (width,) if backward else (), 6, 10)
    found = plan.__wrapped__(work, budget)
    size = found.rows * gpu_plan.padded(vocabulary) * 6
    assert found.rows == 1 or size <= budget
    assert found.rows < 128 or found.rows % 128 == 0
    assert found.splits == 1 or found.splits * found.rows * width * 4 <= budget / 4
    assert backward or found.splits == 1


@given(st.integers(0, 5000), st.integers(1, 700))
def test_chunks_cover_every_token_once(count: int, rows: int) -> None:
    spans = list(gpu_plan.Chunks(rows, 1, 0.0).spans(count))
    assert [i for span in spans for i in range(span.start, span.stop)] == list(range(count))
    assert all(span.stop - span.start == rows for span in spans[:-1])


def test_a_measured_plan_overrides_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    work = log_probs(64, 1000)
    monkeypatch.setitem(gpu_plan.MEASURED, (work, BUDGET), (256, 2))
    assert plan.__wrapped__(work, BUDGET)[:2] == (256, 2)


def test_a_plan_needs_no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "plan" in run_path(gpu_plan.__file__)
