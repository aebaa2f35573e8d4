"""Statistics count what is there."""

import random
from typing import Any

import pytest

from alignkit.data.report import Lengths, describe_rows, percentiles
from alignkit.data.rows import (
    COMPLETION,
    PREFERENCE,
    CompletionRow,
    PreferenceRow,
    parse_completion,
    parse_preference,
)
from alignkit.errors import DataError
from tests import completion
from tests.preference import pair_ids, row

ROWS = [parse_preference(row(index)) for index in range(6)]
EQUAL = PreferenceRow(ROWS[0].prompt, ROWS[0].chosen, ROWS[0].chosen)


def test_repeats_and_overlap(tokenizer: Any) -> None:
    same_prompt = PreferenceRow(ROWS[3].prompt, ROWS[4].chosen, ROWS[4].rejected)
    found = describe_rows(
        [*ROWS, ROWS[1], EQUAL], tokenizer, PREFERENCE, max_length=512, held_out=[ROWS[2], EQUAL, same_prompt]
    )
    assert (found.rows, found.no_signal, found.duplicates, found.duplicate_prompts) == (8, 1, 1, 2)
    assert found.overlap == 2  # row 2 and the equal one
    assert found.prompt_overlap == 4  # and rows 0 and 3 by their prompts
    tools = PreferenceRow(ROWS[0].prompt, ROWS[0].chosen, ROWS[0].rejected, tools=[{"type": "function"}])
    assert describe_rows([ROWS[0], tools], tokenizer, PREFERENCE, max_length=512).duplicates == 1, (
        "the template writes no tools, so both rows are the same ids"
    )


def test_lengths_and_truncation(tokenizer: Any) -> None:
    long = PreferenceRow([{"role": "user", "content": "long " * 200}], ROWS[0].chosen, ROWS[0].rejected)
    pairs = [pair_ids(one, tokenizer) for one in [*ROWS, long]]
    longest = [len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    limit = max(longest[:-1]) - 1
    found = describe_rows([*ROWS, long], tokenizer, PREFERENCE, max_length=limit)
    assert found.truncated == sum(length > limit for length in longest) > 1
    assert found.dropped == 1
    assert found.truncated_share == found.truncated / 7
    assert found.dropped_share == pytest.approx(1 / 7)
    assert found.total.maximum == longest[-1]
    assert found.prompt.p50 == sorted(len(pair.prompt) for pair in pairs)[3]
    assert describe_rows(ROWS, tokenizer, PREFERENCE, max_length=limit + 1).truncated == 0


def test_percentiles_are_counts_that_occur() -> None:
    counts = list(range(1, 201))
    random.Random(0).shuffle(counts)
    assert percentiles(counts) == Lengths(100, 180, 198, 200)
    assert percentiles([7]) == Lengths(7, 7, 7, 7)
    assert percentiles([1, 9]) == Lengths(1, 9, 9, 9)


def test_a_row_that_the_template_refuses_is_named(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="at least one row"):
        describe_rows([], tokenizer, PREFERENCE, max_length=512)
    bad = PreferenceRow([{"role": "user"}], ROWS[0].chosen, ROWS[0].rejected)
    with pytest.raises(DataError, match=r"^row 2: the model's chat template refuses the conversation"):
        describe_rows([ROWS[0], bad], tokenizer, PREFERENCE, max_length=512)


def test_completion_rows(tokenizer: Any) -> None:
    rows = [parse_completion(completion.row(index)) for index in range(5)]
    idle = CompletionRow(rows[0].messages, ())
    sequences = [one.render(tokenizer)[0] for one in rows]
    limit = sequences[0].prompt_length
    found = describe_rows([*rows, rows[1], idle], tokenizer, COMPLETION, max_length=limit, held_out=rows[2:3])
    assert (found.rows, found.no_signal, found.duplicates, found.overlap) == (7, 1, 1, 1)
    assert found.no_signal_words == "no turn that carries loss"
    assert found.dropped == 2 + sum(sequence.prompt_length >= limit for sequence in sequences[1:]) + (
        sequences[1].prompt_length >= limit
    )
    assert found.truncated == 7
    assert list(found.answers) == ["answer"]
    assert found.total.maximum == max(len(sequence.ids) for sequence in sequences)
    longest = max(len(sequence.ids) - sequence.prompt_length for sequence in sequences)
    assert found.answers["answer"].maximum == longest
