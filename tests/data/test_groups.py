"""The optional group of a row, in every kind of row, and the probe that swaps answers."""

import json
from pathlib import Path

import pytest
from datasets import Dataset

from alignkit.data.flipping import flip
from alignkit.data.nodes import RowError
from alignkit.data.rows import ROW_KINDS
from alignkit.data.validation import check_file

ROWS = {
    "preference": {"prompt": "Hi", "chosen": "a", "rejected": "b"},
    "completion": {"prompt": "Hi", "completion": "a"},
    "dispreferred": {"prompt": "Hi", "rejected": "b"},
    "labelled": {"prompt": "Hi", "completion": "a", "label": True},
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_row_of_any_kind_may_name_its_group(kind: str) -> None:
    unused: set[str] = set()
    assert ROW_KINDS[kind].parse({**ROWS[kind], "group": "north"}, unused).group == "north"
    assert ROW_KINDS[kind].parse({**ROWS[kind], "group": None}, unused).group is None
    assert ROW_KINDS[kind].parse(ROWS[kind], unused).group is None
    assert not unused
    with pytest.raises(
        RowError, match="/group: expected text that names the row's group, found the number 3"
    ):
        ROW_KINDS[kind].parse({**ROWS[kind], "group": 3})


def test_the_check_counts_the_rows_of_each_group(tmp_path: Path) -> None:
    rows = [{**ROWS["preference"], "group": group} for group in ["b", "a", "b"]] + [ROWS["preference"]]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check_file(file, "f_dpo").notices == ("rows of each group: b 2, a 1; 1 row without a group",)


def test_the_probe_swaps_a_seeded_share_and_says_which() -> None:
    tokens = Dataset.from_dict(
        {"prompt_ids": [[0]] * 10, "chosen_ids": [[at] for at in range(10)], "rejected_ids": [[99]] * 10}
    )
    found = flip(tokens, 0.3, seed=1)
    assert sum(found["flipped"]) == 3
    for at, row in enumerate(found):
        expected = ([99], [at]) if row["flipped"] else ([at], [99])
        assert (row["chosen_ids"], row["rejected_ids"]) == expected
    assert flip(tokens, 0.3, seed=1)["flipped"][:] == found["flipped"][:]
    assert flip(tokens, 0.3, seed=2)["flipped"][:] != found["flipped"][:]
