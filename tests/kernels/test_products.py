"""Products of a head's weight against plain ones, in float64."""

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


def test_a_product_may_widen() -> None:
    hidden, weight = torch.randn(3, 8).bfloat16(), torch.randn(5, 8).bfloat16()
    out = torch.empty(3, 5)
    assert products.project(hidden, weight, out) is out
    torch.testing.assert_close(out, hidden.float() @ weight.float().T, rtol=1e-2, atol=1e-2)
