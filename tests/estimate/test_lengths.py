"""Lengths of rows, counted and assumed."""

from alignkit.data.tokens import TokenSequence
from alignkit.estimate.lengths import assumed, count, read, steps, trained_rows
from alignkit.methods import METHODS
from tests.estimate.recipes import recipe


def sequence(prompt: int, answer: int) -> TokenSequence:
    return TokenSequence("one", list(range(prompt + answer)), ((prompt, prompt + answer),))


def test_the_longest_and_the_mean_are_of_what_is_left_at_max_length() -> None:
    rows = [[sequence(4, 6), sequence(4, 2)], [sequence(10, 30), sequence(10, 2)]]
    found = count(rows, 20)
    assert found is not None
    assert (found.rows, found.sequences) == (2, 2.0)
    assert (found.longest, found.longest_loss_tokens, found.longest_prompt) == (20, 10, 10)
    assert found.mean == (10 + 6 + 20 + 12) / 4
    assert found.mean_loss_tokens == (6 + 2 + 10 + 2) / 4


def test_dropped_rows_do_not_count() -> None:
    found = count([[sequence(4, 6)], [sequence(30, 6)]], 20, share=0.1)
    assert found is not None
    assert (found.rows, found.longest) == (10, 10)
    assert count([[sequence(30, 6)]], 20) is None


def test_a_labelled_method_counts_each_answer_of_a_pair() -> None:
    pairs = [[sequence(4, 6), sequence(4, 2)]] * 3
    found = count(trained_rows(pairs, METHODS["kto"]), 20)
    assert found is not None
    assert (found.rows, found.sequences) == (6, 1.0)
    assert list(trained_rows(pairs, METHODS["f_dpo"])) == pairs


def test_without_data_every_row_is_full() -> None:
    run = recipe({"type": "f_dpo"})
    assert read(run, rows=77) == assumed(512, 77)
    assert read(run).rows is None


def test_steps_are_of_rows_or_given() -> None:
    training = recipe(
        {"type": "f_dpo"}, training={"batch_size": 4, "micro_batch_size": 4, "epochs": 2}
    ).training
    assert steps(10, training) == (6, 2.0)
    assert steps(None, training) == (None, 2.0)
    assert steps(0, training) == (0, 0.0)
    capped = training.model_copy(update={"max_steps": 5})
    assert steps(10, capped) == (5, 2.0)
    assert steps(None, capped) == (5, 1.0)
