"""The term `thresholds` under f-DPO on right and wrong answers, which differ in one word: DPO lowers both."""

from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.questions import STYLES, ask, pairs, write
from evidence.small_runs import Asked, recipe, run

ARMS = {"no term": [], "thresholds": [{"type": "thresholds"}]}


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train, and measure on held-out pairs how far the chosen answers moved and how many pairs are ordered."""
    folder = settings.work / "thresholds"
    asked = ask(48, 0, held_out=True)
    given = recipe(
        settings,
        train=write(pairs(ask(200, seed), "plain", "wrong"), folder / f"train-{seed}.jsonl"),
        validation=write(pairs(asked, "plain", "wrong"), folder / "held-out.jsonl"),
        method={"type": "f_dpo", "beta": 0.1},
        steps=50,
        seed=seed,
        batch=4,
    )
    given["terms"] = ARMS[arm]
    path, result = run(settings, f"thresholds/{bool(ARMS[arm]):d}-{seed}", given)
    before, after = Asked(settings), Asked(settings, path / "adapter")
    rows = [(one.text, STYLES["plain"](one)) for one in asked]
    answers = after.answer([one.text for one in asked[: settings.steps(16, 2)]])
    written = [one for one in zip((one.text for one in asked), answers, strict=False) if one[1]]
    moved = [new - old for new, old in zip(after.logps(rows), before.logps(rows), strict=True)]
    own = before.logps(written)
    return {
        "chosen, nats per token above the reference": sum(moved) / len(moved),
        "accuracy": result["metrics"]["valid_rewards_accuracies"],
        "answers under the reference, nats per token": sum(own) / max(len(own), 1),
    }


EVIDENCE = Evidence(
    "thresholds",
    "With the term, chosen answers do not fall below the reference, at the same accuracy.",
    tuple(ARMS),
    measure,
    bars("chosen, nats per token above the reference", "chosen answers less the reference, nats"),
    needs_model=True,
    outcome="As claimed. Chosen answers end 0.96 nats a token above the reference with the term and 1.50 below it "
    "without, at accuracies that these seeds cannot tell apart (0.94 and 0.96).",
)

if __name__ == "__main__":
    main(EVIDENCE)
