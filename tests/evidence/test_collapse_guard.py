"""What a limit of the guard finds and what it calls ruined without cause."""

import pytest

from evidence.collapse_guard import EVERY, trade, worse
from evidence.harness import Found

FOUND = Found(
    {
        "sound": {0: {"ruined at step": 0.0, "answers_good_logp": [-1.0, -1.5, -2.0]}},
        "ruined": {0: {"ruined at step": 2.0 * EVERY, "answers_good_logp": [-1.0, -3.0, -9.0]}},
    }
)


def test_an_evaluation_is_ruined_from_the_step_on() -> None:
    assert worse(FOUND, "answers_good_logp") == [(0.5, False), (1.0, False), (2.0, False), (8.0, True)]


@pytest.mark.parametrize(
    ("limit", "shares"), [(0.4, (1, 1)), (1.0, (1 / 3, 1)), (2.0, (0, 1)), (8.0, (0, 0))]
)
def test_a_limit_trades_false_alarms_for_ruin(limit: float, shares: tuple[float, float]) -> None:
    assert trade(worse(FOUND, "answers_good_logp"), limit) == pytest.approx(shares)
