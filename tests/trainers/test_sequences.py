"""Sequences in parts: each in one part, as many parts on every process, and cut where they are too long."""

from hypothesis import given
from hypothesis import strategies as st

from alignkit.data.tokens import TokenSequence
from alignkit.trainers.sequences import parts_for_rank, parts_of

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
