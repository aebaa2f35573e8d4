import torch

from evidence.harm import STRENGTH, HarmScorer, _terms


def row(rejected: str, chosen: str) -> dict[str, object]:
    return {"rejected": [{"content": rejected}], "chosen": [{"content": chosen}]}


ROWS = [
    row("you could steal it", "sorry that is not right"),
    row("sure you could lie", "sorry but that is wrong"),
    row("here is how to steal", "that is not a good idea"),
]


def test_the_scorer_ranks_answers_by_words_of_both_kinds() -> None:
    scorer = HarmScorer(ROWS)
    assert scorer.ranked(ROWS) == 1.0
    bad, unknown, good = scorer.score(["You could steal", "xyz", "Sorry, not right"])
    assert bad > unknown == 0 > good
    assert scorer.ranked([row("sorry, that is not right", "you could steal")]) == 0.0


def test_answers_of_different_rows_are_told_apart_by_their_scores() -> None:
    scorer = HarmScorer(ROWS)
    one = row("you could steal", "sorry")
    assert scorer.told_apart([one, row("xyz", "xyz")]) == (1 + 1 + 1 + 0.5) / 4  # above both; above, equal
    assert scorer.mean([one, row("xyz", "xyz")], "rejected") == scorer.score(["you could steal"])[0] / 2


def test_features_have_unit_length_and_no_term_of_a_single_answer() -> None:
    scorer = HarmScorer(ROWS)
    assert {"you could", "steal", "sorry", "that is"} <= scorer._places.keys()
    assert not {"lie", "idea"} & scorer._places.keys()
    lengths = scorer._features([_terms("steal steal sorry"), _terms("xyz")]).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_the_coefficients_are_the_minimum() -> None:
    """At a minimum the gradient is zero: w = STRENGTH sum sigmoid(-w . d) d."""
    scorer = HarmScorer(ROWS)
    bad, good = (
        scorer._features([_terms(one[side][0]["content"]) for one in ROWS])  # type: ignore[index]
        for side in ("rejected", "chosen")
    )
    d, w = bad - good, scorer._coefficients
    torch.testing.assert_close(
        w, STRENGTH * (torch.sigmoid(-d @ w)[:, None] * d).sum(dim=0), atol=1e-4, rtol=0
    )
