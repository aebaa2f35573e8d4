"""The choice of an implementation by device, argument and environment."""

import pytest
import torch

from alignkit.kernels import backend


@pytest.mark.parametrize(
    ("weight", "asked", "kept"),
    [
        (torch.bfloat16, None, torch.float32),
        (torch.float16, "float32", torch.float32),
        (torch.bfloat16, "bf16", torch.bfloat16),
        (torch.float16, "bf16", torch.float16),
        (torch.float32, "bf16", torch.float32),
        (torch.float64, None, torch.float64),
    ],
)
def test_logits_are_float32_unless_16_bits_are_asked_for(
    weight: torch.dtype, asked: str | None, kept: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(backend.LOGITS_VARIABLE, raising=False)
    if asked:
        monkeypatch.setenv(backend.LOGITS_VARIABLE, asked)
    assert backend.logits_dtype(torch.empty(1, dtype=weight)) == kept


def test_another_logits_dtype_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(backend.LOGITS_VARIABLE, "fp8")
    with pytest.raises(ValueError, match="ALIGNKIT_LOGITS must be bf16 or float32, found 'fp8'"):
        backend.logits_dtype(torch.empty(1))
