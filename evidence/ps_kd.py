"""PS-KD in a run that over-fits: 48 completions in a style that nothing predicts, 12 epochs."""

from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.questions import ask, completions, write
from evidence.small_runs import Asked, calibration, joined, named, recipe, run

WEIGHTS = {"supervised": 0.0, "final weight .5": 0.5, "final weight .8": 0.8}
STYLED = ["short", "plain", "long", "upper"]
EPOCHED = "supervised, 2 epochs"
ARMS = (EPOCHED, *WEIGHTS)


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train, and read held-out NLL and calibration error of the tokens."""
    folder = settings.work / "ps_kd"
    asked = ask(96, 0, held_out=True)
    given = recipe(
        settings,
        train=write(completions(ask(48, seed), STYLED, seed), folder / f"train-{seed}.jsonl"),
        validation=write(completions(asked, STYLED), folder / "held-out.jsonl"),
        method={"type": "ps_kd", "final_weight": WEIGHTS.get(arm, 0.0)},
        steps=12 if arm == EPOCHED else 72,
        seed=seed,
    )
    given["training"]["learning_rate"] = 1e-3
    path, result = run(settings, f"ps_kd/{named(arm)}-{seed}", given)
    rows = [(row["prompt"], row["completion"]) for row in completions(asked, STYLED)]
    return {
        "NLL": result["metrics"]["valid_loss"],
        "calibration error": calibration(joined(Asked(settings, path / "adapter").read(rows))),
    }


EVIDENCE = Evidence(
    "ps_kd",
    "In a run that over-fits, the past self lowers the calibration error at no worse NLL.",
    ARMS,
    measure,
    bars("calibration error", "held-out calibration error of tokens"),
    needs_model=True,
    outcome="In part. With every seed the past self lowers the NLL (0.43 to 0.39 and 0.37) and the calibration error "
    "(0.052 to 0.047 and 0.042); three seeds make sure of the first only. And the run did not over-fit: twelve "
    "epochs are better than two.",
)

if __name__ == "__main__":
    main(EVIDENCE)
