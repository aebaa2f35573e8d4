"""What the frontier reads off between the reverse KL's points."""

import pytest

from evidence.frontier import ahead
from evidence.harness import Found

NAME = "reward beyond the reverse KL's at this KL"


def found(**others: tuple[float, float]) -> Found:
    """Two seeds of the reverse KL's line, reward 2 KL up to KL 1 and flat from there to 2, and of other arms."""
    line = {
        "best of 1": (0.0, 0.0),
        "reverse_kl 3": (0.1, 0.2),
        "reverse_kl 1": (0.3, 0.6),
        "reverse_kl 0.4": (0.5, 1.0),
        "reverse_kl 0.2": (1.0, 2.0),
        "reverse_kl 0.1": (2.0, 2.0),
    }
    points = line | {name.replace("_", " "): point for name, point in others.items()}
    return Found(
        {
            name: {seed: {"KL": kl, "reward": reward} for seed in (0, 1)}
            for name, (kl, reward) in points.items()
        }
    )


@pytest.mark.parametrize(
    ("point", "gap"),
    [((0.25, 0.5), 0.0), ((0.25, 0.75), 0.25), ((0.75, 1.0), -0.5), ((1.5, 2.5), 0.5), ((2.0, 1.0), -1.0)],
)
def test_a_reward_is_compared_with_the_line_at_its_own_kl(point: tuple[float, float], gap: float) -> None:
    assert ahead(found(other=point))["other"][NAME]["mean"] == pytest.approx(gap)


def test_an_arm_beyond_the_lines_end_is_not_compared() -> None:
    assert "other" not in ahead(found(other=(2.1, 9.0)))


def test_nothing_is_compared_before_the_line_has_been_run() -> None:
    assert ahead(Found({"best of 1": {0: {"KL": 0.0, "reward": 0.0}}})) == {}
