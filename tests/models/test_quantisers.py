"""The serving quantisers against their definitions, and half steps as bounds of what rounding changes."""

import pytest
import torch

from alignkit.models.quantisers import BLOCK, NF4, half_steps, quantised

FORMATS = ("nf4", "int8", "fp8")


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(16, 2 * BLOCK, generator=torch.Generator().manual_seed(0)) / 10


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_changes_a_weight_by_about_a_half_step_at_most(name: str, weight: torch.Tensor) -> None:
    error, half = (quantised(weight, name) - weight).abs(), half_steps(weight, name)
    assert half.shape == weight.shape
    assert (half > 0).all()
    assert (error / half).mean() == pytest.approx(0.5, abs=0.08)  # a uniform error has half of its bound
    assert (error <= half * 1.7 + 2e-4).all()  # nf4's steps are uneven, and its scales have 8 bits


@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_what_is_quantised_stays(name: str, weight: torch.Tensor) -> None:
    once = quantised(weight, name)
    torch.testing.assert_close(quantised(once, name), once, rtol=2e-3, atol=1e-6)


def test_int8_is_127_steps_of_a_rows_largest_weight(weight: torch.Tensor) -> None:
    found, scale = quantised(weight, "int8"), weight.abs().amax(dim=1, keepdim=True) / 127
    levels = found / scale
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=0.1)
    assert ((found - weight).abs() <= 0.55 * scale).all()


def test_nf4_is_the_nearest_code_of_a_block(weight: torch.Tensor) -> None:
    blocks = weight.view(-1, BLOCK)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    codes = torch.tensor(NF4)
    nearest = codes[(blocks / largest)[..., None].sub(codes).abs().argmin(dim=-1)] * largest
    torch.testing.assert_close(quantised(weight, "nf4"), nearest.view_as(weight), rtol=0, atol=4e-3)


def test_fp8_keeps_three_bits_of_the_mantissa(weight: torch.Tensor) -> None:
    scale = weight.abs().max() / 448
    mantissa, exponent = torch.frexp(weight / scale)
    expected = torch.ldexp((mantissa * 16).round() / 16, exponent) * scale
    normal = (weight / scale).abs() > 2.0**-6
    torch.testing.assert_close(quantised(weight, "fp8")[normal], expected[normal])
