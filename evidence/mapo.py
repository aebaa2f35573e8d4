"""MaPO against DPO where the chosen answers are in the model's style, and where it would hardly write them.

Own style: a plain sentence is preferred to a long one. Foreign style: capitals are preferred to the plain sentence.
"""

from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.questions import STYLES, ask, pairs, write
from evidence.small_runs import Asked, recipe, run

METHODS = {"DPO": {"type": "f_dpo", "beta": 0.1}, "MaPO": {"type": "mapo"}}
PREFERRED = {"own style": ("plain", "long"), "foreign style": ("upper", "plain")}
ARMS = tuple(f"{method}, {style}" for style in PREFERRED for method in METHODS)


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train, and measure the log-prob of held-out chosen answers and the style of greedy ones."""
    method, style = arm.split(", ")
    chosen, rejected = PREFERRED[style]
    folder = settings.work / "mapo"
    asked = ask(24, 0, held_out=True)
    given = recipe(
        settings,
        train=write(pairs(ask(400, seed), chosen, rejected), folder / f"{chosen}-{seed}.jsonl"),
        validation=write(pairs(asked, chosen, rejected), folder / f"{chosen}-held-out.jsonl"),
        method=METHODS[method],
        steps=40,
        seed=seed,
        batch=4,
    )
    given["training"]["learning_rate"] = 2e-4
    path, _ = run(settings, f"mapo/{method}-{chosen}-{seed}", given)
    model = Asked(settings, path / "adapter")
    logps = model.logps([(one.text, STYLES[chosen](one)) for one in asked])
    answers = model.answer([one.text for one in asked[: settings.steps(24, 2)]])
    in_style = [
        bool(answer) and (answer == answer.upper() if chosen == "upper" else len(answer) < 60)
        for answer in answers
    ]
    return {
        "log-prob of chosen": sum(logps) / len(logps),
        "answers in the chosen style": sum(in_style) / len(in_style),
    }


EVIDENCE = Evidence(
    "mapo",
    "Where the reference would hardly write the chosen answers, MaPO reaches a higher log-prob of them, and answers "
    "in their style more often, than DPO in as many steps.",
    ARMS,
    measure,
    bars("log-prob of chosen", "held-out chosen answers, nats per token"),
    needs_model=True,
    outcome="As claimed: chosen answers end at -0.96 nats a token and 60 % of the greedy answers are in their style; "
    "with DPO -1.76 and 13 %. In the model's own style the gap is wider still (-0.28 and all, -2.56 and 13 %), so it "
    "does not come from the reference alone.",
)

if __name__ == "__main__":
    main(EVIDENCE)
