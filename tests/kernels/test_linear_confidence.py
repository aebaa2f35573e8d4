"""The confidence of a head against whole float64 logits."""

import pytest
import torch

from alignkit.kernels import linear_confidence as module
from alignkit.kernels.linear_confidence import linear_confidence


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_that_of_whole_logits(
    softcap: float | None, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 17 * 3)  # three rows at a time
    torch.manual_seed(0)
    hidden, weight = torch.randn(10, 5, requires_grad=True), torch.randn(17, 5, requires_grad=True)
    bias = torch.randn(17) if biased else None
    labels = torch.randint(17, (10,))
    logits = 0.7 * (hidden.double() @ weight.double().T + (0 if bias is None else bias.double()))
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    labels[::2] = logits.argmax(dim=1)[::2]
    found = linear_confidence(hidden, weight, labels, bias=bias, logit_scale=0.7, softcap=softcap)
    torch.testing.assert_close(found.probability, logits.softmax(-1).amax(-1).float())
    assert torch.equal(found.right, logits.argmax(-1) == labels)
    assert not found.probability.requires_grad


def test_no_rows() -> None:
    found = linear_confidence(torch.empty(0, 5), torch.randn(17, 5), torch.empty(0, dtype=torch.long))
    assert found.probability.shape == found.right.shape == (0,)
