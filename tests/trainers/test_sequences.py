"""Sequences in parts: each in one part, as many parts on every process, and cut where they are too long."""

from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.tokens import TokenSequence
from alignkit.trainers.sequences import graphs_of, parts_for_rank, parts_of

LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def sequences(lengths: list[int]) -> list[TokenSequence]:
    return [TokenSequence("x", [0] * length, ((0, length),)) for length in lengths]


@given(LENGTHS, st.integers(1, 9), st.integers(0, 50))
def test_parts_hold_each_sequence_once_and_then_the_first_part_again(
    lengths: list[int], size: int, least: int
) -> None:
    parts = parts_of(sequences(lengths), size, least)
    needed = -(-len(lengths) // size)
    assert len(parts) == max(needed, least)
    assert sorted(index for part in parts[:needed] for index in part) == list(range(len(lengths)))
    assert all(part == parts[0] for part in parts[needed:])
    ordered = [lengths[index] for part in parts[:needed] for index in part]
    assert ordered == sorted(lengths, reverse=True)


PROMPTS = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=30)
"""(length of the prompt, which is also its id; length of the answer) of each sequence."""


def answers(drawn: list[tuple[int, int]]) -> list[TokenSequence]:
    return [
        TokenSequence("x", [prompt] * prompt + [9] * answer, ((prompt, prompt + answer),))
        for prompt, answer in drawn
    ]


def computed(found: list[TokenSequence]) -> int:
    """Tokens with each prompt once, counted in another way than by the code."""
    return sum({one.ids.index(9) for one in found}) + sum(one.ids.count(9) for one in found)


@given(PROMPTS, st.integers(1, 9), st.integers(0, 50))
def test_packed_parts_hold_each_sequence_once_within_the_tokens(
    drawn: list[tuple[int, int]], size: int, least: int
) -> None:
    all_answers = answers(drawn)
    parts = parts_of(all_answers, size, packed=True)
    assert sorted(index for part in parts for index in part) == list(range(len(drawn)))
    limit = size * max(len(one.ids) for one in all_answers)
    assert all(computed([all_answers[index] for index in part]) <= limit for part in parts)
    more = parts_of(all_answers, size, least, packed=True)
    assert more == parts + [parts[0]] * (least - len(parts))


@given(st.lists(PROMPTS, min_size=1, max_size=6), st.integers(1, 60), st.booleans())
def test_graphs_hold_each_row_once_in_order_or_there_are_none(
    drawn: list[list[tuple[int, int]]], size: int, packed: bool
) -> None:
    rows = [answers(row) for row in drawn]
    count = computed if packed else lambda found: len(found) * max(len(one.ids) for one in found)
    limit = size * max(len(one.ids) for row in rows for one in row)
    graphs = graphs_of(rows, size, packed=packed)
    if any(count(row) > limit for row in rows):
        assert graphs is None
        return
    assert [index for part in graphs for index in part] == list(range(len(rows)))
    whole = [[one for index in part for one in rows[index]] for part in graphs]
    assert all(count(part) <= limit for part in whole)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 5))
def test_processes_share_all_parts_and_take_equally_many(lengths: list[int], size: int, world: int) -> None:
    parts = parts_of(sequences(lengths), size)
    taken = [list(parts_for_rank(parts, rank, world)) for rank in range(world)]
    assert {len(one) for one in taken} == {-(-len(parts) // world)}
    assert {tuple(part) for one in taken for part in one} == {tuple(part) for part in parts}


@given(st.integers(1, 30), st.integers(0, 29), st.integers(1, 40))
def test_a_cut_sequence_keeps_its_loss_on_the_rest(length: int, start: int, most: int) -> None:
    learned = ((start, length),) if start < length else ()
    whole = TokenSequence("x", list(range(length)), learned)
    found = whole.cut_to(most)
    assert found.ids == list(range(min(length, most)))
    kept = [index for first, last in found.loss_spans for index in range(first, last)]
    assert kept == list(range(start, min(length, most)))
    assert found.cut == max(0, length - most)
    assert found.cut_to(None) is found
