"""The card of a trained model: what it says of method, paper, base, data and metrics."""

from alignkit.methods import FDPO, Supervised
from alignkit.trainers.model_card import Card


def test_a_card_names_the_method_its_paper_the_base_the_data_and_the_metrics() -> None:
    text = Card(
        FDPO(divergence="js_divergence"),
        "org/base",
        on_hub=True,
        adapter=True,
        name="mine",
        data={"training": "pairs.jsonl, 24 rows"},
        metrics={"valid_loss": 0.51234, "note": "no number"},
        options={"divergence": "js_divergence"},
        tags=["demo"],
    ).text()
    assert text.startswith(
        "---\nlibrary_name: peft\nbase_model: org/base\ntags:\n- alignkit\n- demo\n- f-dpo\n---"
    )
    assert "# mine" in text
    assert "A LoRA adapter of `org/base`." in text
    assert "Trained with f_dpo ([arXiv 2309.16240](https://arxiv.org/abs/2309.16240))" in text
    assert "- training: pairs.jsonl, 24 rows" in text
    assert "| `valid_loss` | 0.5123 |" in text
    assert "note" not in text
    assert "| `divergence` | js_divergence |" in text


def test_a_model_that_is_no_hub_id_is_not_linked() -> None:
    text = Card(Supervised(), "local-model").text()
    assert "base_model:" not in text
    assert "All weights trained, from `local-model`." in text
    assert "arXiv" not in text
