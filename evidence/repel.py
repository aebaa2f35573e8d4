"""Unlearning a planted behaviour: answers that end with a slogan.

A model is planted with it: an adapter trained on answers of which half have the slogan. Unlearning trains that
adapter on, for a few steps on clean answers: without more, or with the term `repel` from an adapter that was trained
further on answers with the slogan alone.
"""

from pathlib import Path
from typing import Any

from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.questions import SLOGAN, STYLES, ask, completions, write
from evidence.small_runs import Asked, named, recipe, run

STEPS, UNLEARNING_STEPS, ROWS, ASKED = 40, 8, 320, 24
ARMS = ("planted", "clean answers", "clean answers, repel", "clean answers, repel x 10")
WEIGHTS = {ARMS[2]: 1.0, ARMS[3]: 10.0}


def _stage(settings: Settings, name: str, styles: list[str], steps: int, seed: int) -> dict[str, Any]:
    folder = settings.work / "repel"
    return recipe(
        settings,
        train=write(completions(ask(ROWS, seed), styles, seed), folder / f"{name}-{seed}.jsonl"),
        validation=write(completions(ask(24, 0, held_out=True), ["plain"]), folder / "held-out.jsonl"),
        method={"type": "supervised"},
        steps=steps,
        seed=seed,
    )


def _adapter(settings: Settings, name: str, given: dict[str, Any], seed: int) -> Path:
    return run(settings, f"repel/{name}-{seed}", given)[0] / "adapter"


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Plant, unlearn, and measure the share of drawn answers with the slogan and the NLL of clean ones."""
    planted = _adapter(
        settings, "planted", _stage(settings, "planted", ["plain", "slogan"], STEPS, seed), seed
    )
    found = planted
    if arm != "planted":
        given = _stage(settings, "clean", ["plain"], UNLEARNING_STEPS, seed + 10)
        given["model"]["adapter"] = str(planted)
        if arm in WEIGHTS:
            negatives = _stage(settings, "negatives", ["slogan"], STEPS, seed + 20)
            negatives["model"]["adapter"] = str(planted)
            away = _adapter(settings, "negatives", negatives, seed)
            given["terms"] = [{"type": "repel", "adapters": [str(away)], "weight": WEIGHTS[arm]}]
        found = _adapter(settings, f"unlearned-{named(arm)}", given, seed)
    model = Asked(settings, found)
    asked = ask(ASKED, 0, held_out=True)
    answers = model.answer([one.text for one in asked[: settings.steps(ASKED, 2)]], 32, seed=seed)
    clean = model.logps([(one.text, STYLES["plain"](one)) for one in asked])
    said = model.logps([(one.text, STYLES["slogan"](one)) for one in asked])
    return {
        "drawn answers with the slogan": sum(SLOGAN in answer for answer in answers) / len(answers),
        "NLL of answers with the slogan": -sum(said) / len(said),
        "NLL of clean answers": -sum(clean) / len(clean),
    }


EVIDENCE = Evidence(
    "repel",
    "The push away from an adapter of unwanted answers lowers their share more than clean answers alone, at little "
    "loss on clean answers.",
    ARMS,
    measure,
    bars("drawn answers with the slogan", "drawn answers with the slogan"),
    needs_model=True,
    outcome="In part. Eight steps on clean answers alone already lower the share from 0.46 to none, so nothing is "
    "left for the push to lower. It makes such answers less likely, 1.13 nats a token and 1.20 at ten times the "
    "weight against 1.03, and costs clean answers 0.02 and 0.11.",
)

if __name__ == "__main__":
    main(EVIDENCE)
