"""The table of slopes in docs/f_dpo.md has the slopes of the divergences."""

import re
from pathlib import Path

import pytest
import torch

from alignkit import divergences

ROW = re.compile(r"^\| `(\w+)`.*? \| .*? \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
TABLE = ROW.findall(Path("docs/f_dpo.md").read_text().partition("## Precision")[2])


def test_every_divergence_has_a_row() -> None:
    assert {row[0] for row in TABLE} == set(divergences.available())


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row[0])
def test_the_slopes_are_the_scores_derivatives(row: tuple[str, ...]) -> None:
    name, *shown = row
    options = {"alpha": 0.5} if name == "alpha_divergence" else {}
    z = torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    (slopes,) = torch.autograd.grad(divergences.get(name, **options).score(z).sum(), z)
    assert [float(text) for text in shown] == pytest.approx(slopes.tolist(), rel=0.06)
