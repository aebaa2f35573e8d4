"""Products of a head's weight against plain ones, in float64."""

from typing import Any

import pytest
import torch

from alignkit.kernels import products


@pytest.mark.parametrize("vocabulary", [7, 64, 1000, 1003])
@pytest.mark.parametrize("splits", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_split_product_is_the_whole_one(vocabulary: int, splits: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(5, vocabulary + 9, generator=generator).to(dtype)
    gradient, weight = wide[:, :vocabulary], torch.randn(vocabulary, 6, generator=generator).to(dtype)
    expected = gradient.double() @ weight.double()
    found = products.states(gradient, weight, torch.empty(5, 6, dtype=dtype), splits)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(
        found.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max()
    )


@pytest.mark.parametrize("fresh", [False, True])
def test_a_sum_of_products_is_float32(fresh: bool) -> None:
    """A bfloat16 sum would lose the ones."""
    total = torch.full((1, 1), 4096.0)
    for _ in range(4):
        products.add_product(total, torch.ones(1, 1).bfloat16(), torch.ones(1, 1).bfloat16(), fresh=fresh)
    assert total.item() == (1 if fresh else 4100)


@pytest.mark.parametrize(
    ("asked", "has_amx", "multiplies"),
    [("", True, True), ("", False, False), ("auto", True, True), ("on", False, True), ("off", True, False)],
)
def test_bfloat16_products_are_taken_where_the_processor_has_amx(
    asked: str, has_amx: bool, multiplies: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(products.AMX_VARIABLE, asked)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": has_amx})
    assert products.multiplies_bfloat16() == multiplies


def test_another_value_for_amx_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(products.AMX_VARIABLE, "yes")
    with pytest.raises(ValueError, match="ALIGNKIT_AMX must be auto, on or off, found 'yes'"):
        products.multiplies_bfloat16()


@pytest.mark.parametrize(
    ("operand", "asked", "precision"),
    [
        (torch.bfloat16, "on", "bf16"),
        (torch.bfloat16, "off", "none"),
        (torch.float16, "on", "none"),
        (torch.float32, "on", "none"),
    ],
)
def test_a_forced_product_of_bfloat16_is_near_and_leaves_the_setting(
    operand: torch.dtype, asked: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, seen, addmm = torch.Generator().manual_seed(0), [], torch.addmm

    def watched(*arguments: Any, **options: Any) -> torch.Tensor:
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)
        return addmm(*arguments, **options)

    monkeypatch.setenv(products.AMX_VARIABLE, asked)
    monkeypatch.setattr(torch, "addmm", watched)
    a, b = torch.randn(8, 64, generator=generator), torch.randn(64, 4, generator=generator).to(operand)
    total = torch.ones(8, 4)
    products.add_product(total, a, b)
    torch.testing.assert_close(total.double(), 1 + a.double() @ b.double(), rtol=1e-2, atol=5e-2)
    assert seen == [precision]
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"


def test_a_product_may_widen() -> None:
    hidden, weight = torch.randn(3, 8).bfloat16(), torch.randn(5, 8).bfloat16()
    out = torch.empty(3, 5)
    assert products.project(hidden, weight, out) is out
    torch.testing.assert_close(out, hidden.float() @ weight.float().T, rtol=1e-2, atol=1e-2)


def test_float32_products_hold_inside_and_leave_nothing_behind() -> None:
    backends = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)
    with products.bfloat16_products():
        with products.float32_products():
            assert [one.fp32_precision for one in backends] == ["ieee", "ieee"]
        assert backends[0].fp32_precision == "bf16"
    assert [one.fp32_precision for one in backends] == ["none", "none"]
