"""How often a run evaluates by itself: at most a tenth of its cost, counted here anew, or once."""

from hypothesis import given
from hypothesis import strategies as st

from alignkit.run.evaluation_share import FEWEST_TOKENS, MOST_TOKENS, Watching, steps_of

RUNS = st.builds(
    Watching,
    steps=st.integers(1, 5_000),
    batch_size=st.integers(1, 256),
    held_out_rows=st.integers(0, 20_000),
    prompts=st.sampled_from([0, 1, 4, 64]),
    tokens=st.sampled_from([None, 8, 48, 1024]),
)


def evaluated(steps: int, interval: int) -> list[int]:
    """The steps that the Trainer evaluates, and the last one."""
    return sorted({*range(interval, steps + 1, interval), steps})


def cost(run: Watching, interval: int) -> float:
    """Cost of watching, counted evaluation by evaluation, in rows of training."""
    at = evaluated(run.steps, interval)
    tokens = run.guard_tokens()
    guard = (tokens / 8 + run.prompts / 2) if run.prompts else 0
    return guard + sum(run.held_out_rows / 3 + guard for _ in at)


@given(run=RUNS, epochs=st.integers(1, 8))
def test_evaluations_and_guard_take_a_tenth_of_the_run_or_happen_once(run: Watching, epochs: int) -> None:
    interval = run.interval(max(1, run.steps // epochs))
    count = len(evaluated(run.steps, interval))
    assert count == 1 or cost(run, interval) <= 0.1 * run.steps * run.batch_size * (1 + 1e-9)
    assert count <= 8


@given(run=RUNS)
def test_one_more_evaluation_would_be_too_many(run: Watching) -> None:
    interval = run.interval(run.steps)
    count = len(evaluated(run.steps, interval))
    more = [steps for steps in range(1, interval) if len(evaluated(run.steps, steps)) == count + 1]
    assert count == 8 or all(
        cost(run, steps) > 0.1 * run.steps * run.batch_size * (1 - 1e-9) for steps in more
    )


@given(run=RUNS, evaluations=st.integers(1, 9))
def test_the_guards_answers_are_shortened_only_where_a_tenth_would_be_passed(
    run: Watching, evaluations: int
) -> None:
    tokens = run.guard_tokens(evaluations)
    if run.tokens is not None:
        assert tokens == run.tokens
        return
    assert FEWEST_TOKENS <= tokens <= MOST_TOKENS

    def passes(tokens: int) -> bool:
        guard = (tokens / 8 + run.prompts / 2) if run.prompts else 0
        watching = evaluations * (run.held_out_rows / 3 + guard) + guard
        return watching <= 0.1 * run.steps * run.batch_size * (1 + 1e-9)

    assert tokens == FEWEST_TOKENS or passes(tokens)
    assert tokens == MOST_TOKENS or run.prompts == 0 or not passes(tokens + 1)


def test_the_end_of_each_epoch_is_evaluated_where_that_can_be_afforded() -> None:
    run = Watching(steps=3 * 47, batch_size=32, held_out_rows=30, prompts=4)
    assert run.interval(47) == 47
    assert run.interval(3 * 47) == 18


def test_early_stopping_gets_the_evaluations_that_it_needs() -> None:
    run = Watching(steps=10_000, batch_size=32, held_out_rows=30, prompts=4)
    assert len(evaluated(10_000, run.interval(10_000, patience=10))) == 22


def test_a_tiny_run_is_evaluated_once_with_short_answers() -> None:
    run = Watching(steps=6, batch_size=4, held_out_rows=4, prompts=4)
    assert (run.interval(6), run.guard_tokens()) == (6, 16)


def test_steps_follow_from_rows_batch_and_epochs() -> None:
    assert steps_of(10, 4, 2.0, None) == (6, 3)
    assert steps_of(10, 4, 0.5, None) == (2, 3)
    assert steps_of(10, 4, 2.0, 5) == (5, 3)
    assert steps_of(0, 4, 1.0, None) == (1, 1)
