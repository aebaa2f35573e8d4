"""quack's op as an implementation of linear_logprob: the values and gradients of the reference, or a refusal.

It runs on one kind of GPU alone. So a stand-in with its signatures shows the call, and where the package is installed
a test compares the signatures, which takes no import.
"""

import ast
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit.errors import AlignkitError
from alignkit.kernels import linear_logprob
from alignkit.kernels.backend import interpreted

pytestmark = pytest.mark.skipif(interpreted(), reason="the same for every implementation")
INSTALLED = importlib.util.find_spec("quack")
LABELS = torch.tensor([3, 127, -100, 0, 3])
UPSTREAM = torch.tensor([0.5, -1.0, 7.0, 2.0, 1.5])


def scaled_exp_lce_supported(x: Tensor, weight: Tensor, chunk_size: int | None, reduction: str) -> bool:
    """As quack's, but for the device."""
    return (
        x.dtype == weight.dtype == torch.bfloat16
        and x.stride(-1) == weight.stride(-1) == 1
        and weight.size(0) % 128 == 0
        and weight.size(1) % 8 == 0
        and chunk_size is not None
        and chunk_size % 128 == 0
        and reduction in {"mean", "sum"}
    )


def scaled_exp_linear_cross_entropy_fwd(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    chunk_size: int,
    ignore_index: int = -100,
    *,
    need_dx: bool = True,
    need_dw: bool = True,
    grad_scale: Tensor | None = None,
    tile_n1: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return losses [M] in float32 and their gradients in the dtype of x, with the rows that quack adds."""
    assert not need_dw
    assert grad_scale is tile_n1 is None
    padding = -len(x) % 128
    wide = x.detach().double().requires_grad_()
    with torch.enable_grad():
        losses = torch.nn.functional.cross_entropy(
            wide @ weight.double().T, target, ignore_index=ignore_index, reduction="none"
        )
        (gradient,) = torch.autograd.grad(losses.sum(), wide)
    grown = torch.nn.functional.pad
    return (
        grown(losses.detach().float(), (0, padding)),
        grown(gradient.to(x.dtype), (0, 0, 0, padding)) if need_dx else None,
        None,
    )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package quack whose one module holds the functions above."""
    package, module = ModuleType("quack"), ModuleType("quack.linear_cross_entropy")
    for function in (scaled_exp_lce_supported, scaled_exp_linear_cross_entropy_fwd):
        setattr(module, function.__name__, function)
    package.linear_cross_entropy = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "quack", package)
    monkeypatch.setitem(sys.modules, "quack.linear_cross_entropy", module)
    package.__spec__ = importlib.util.spec_from_loader("quack", loader=None)
    return module


def operands(
    vocabulary: int = 128, dtype: torch.dtype = torch.bfloat16, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(shape, generator=generator).to(device, dtype) for shape in ((5, 8), (vocabulary, 8))
    )
    return hidden.requires_grad_(), weight


def compare(device: str) -> None:
    """Values and the gradient to the hidden states, under an upstream gradient that differs from row to row."""
    results = []
    for name in ("reference", "quack"):
        hidden, weight = operands(device=device)
        found = linear_logprob(hidden, weight, LABELS.to(device), implementation=name)
        (found.logps * UPSTREAM.to(device)).sum().backward()
        assert hidden.grad is not None
        results.append([found.logps, hidden.grad])
    for expected, found in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=4e-2, atol=4e-2)


@pytest.mark.usefixtures("stand_in")
def test_its_rows_are_the_references() -> None:
    compare("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(
    INSTALLED is None or not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="needs quack-kernels, on a GPU of compute capability 9.0",
)
def test_quack_equals_the_reference() -> None:
    compare("cuda")


@pytest.mark.skipif(INSTALLED is None, reason="needs quack-kernels")
@pytest.mark.parametrize("mine", [scaled_exp_lce_supported, scaled_exp_linear_cross_entropy_fwd])
def test_the_stand_in_has_the_signature_of_the_package(mine: Any) -> None:
    assert INSTALLED is not None
    source = Path(str(INSTALLED.submodule_search_locations[0]), "linear_cross_entropy.py").read_text()
    (theirs,) = [x for x in ast.parse(source).body if getattr(x, "name", "") == mine.__name__]
    assert isinstance(theirs, ast.FunctionDef)
    given = inspect.signature(mine).parameters.values()
    by_name = inspect.Parameter.KEYWORD_ONLY
    assert [x.arg for x in theirs.args.args] == [x.name for x in given if x.kind != by_name]
    assert [x.arg for x in theirs.args.kwonlyargs] == [x.name for x in given if x.kind == by_name]
    assert len(theirs.args.defaults) == sum(x.default is not x.empty for x in given if x.kind != by_name)


@pytest.mark.usefixtures("stand_in")
def test_nothing_is_made_for_a_gradient_that_nobody_asks_for() -> None:
    hidden, weight = operands()
    with torch.no_grad():
        found = linear_logprob(hidden, weight, LABELS, implementation="quack").logps
    expected = linear_logprob(hidden, weight, LABELS, implementation="reference").logps
    torch.testing.assert_close(found, expected, rtol=4e-2, atol=4e-2)
    assert not found.requires_grad


@pytest.mark.usefixtures("stand_in")
def test_rows_that_are_all_ignored_have_a_gradient_of_zero() -> None:
    hidden, weight = operands()
    linear_logprob(hidden, weight, LABELS.clamp(max=-100), implementation="quack").logps.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ({"bias": torch.zeros(128)}, "a bias"),
        ({"softcap": 5.0}, "a soft cap"),
        ({"temperature": 2.0}, "a logit scale over temperature of 0.5"),
        ({"top1": True, "entropy": True}, "entropy, top1"),
    ],
)
def test_what_quack_does_not_have_is_refused(asked: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=f"it cannot compute {word}. Leave the choice to the device"):
        linear_logprob(*operands(), LABELS, implementation="quack", **asked)


@pytest.mark.usefixtures("stand_in")
def test_a_head_that_trains_is_refused() -> None:
    hidden, weight = operands()
    with pytest.raises(ValueError, match="it cannot compute the gradient of a head that trains"):
        linear_logprob(hidden, weight.requires_grad_(), LABELS, implementation="quack")


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(("vocabulary", "dtype"), [(129, torch.bfloat16), (128, torch.float32)])
def test_a_shape_or_dtype_that_does_not_fit_is_refused(vocabulary: int, dtype: torch.dtype) -> None:
    with pytest.raises(
        ValueError, match=f"9.0, bfloat16, V divisible by 128 .*found {dtype} .*V {vocabulary}"
    ):
        linear_logprob(*operands(vocabulary, dtype), LABELS, implementation="quack")


def test_without_the_package_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(AlignkitError, match="needs the package quack-kernels, which is not installed: pip"):
        linear_logprob(*operands(), LABELS, implementation="quack")


def test_another_version_is_refused(stand_in: ModuleType) -> None:
    del stand_in.scaled_exp_lce_supported  # type: ignore[attr-defined]
    with pytest.raises(AlignkitError, match=r"expected version 0\.6: .*scaled_exp_lce_supported"):
        linear_logprob(*operands(), LABELS, implementation="quack")
