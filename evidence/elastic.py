"""Elastic training on a language model: held-out loss over quantised weights, with and without noise.

Two runs of the same supervised recipe, which differ in the strength of the noise alone; each is measured as trained
and over weights that the serving quantisers have rounded.
"""

from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.questions import ask, completions, write
from evidence.small_runs import recipe, run

STRENGTHS = {"without noise": 0.0, "with noise": 1.0}
FORMATS = ["nf4", "int8", "fp8"]


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train the recipe and read the losses from its result."""
    data = settings.work / "elastic"
    name = f"elastic/{STRENGTHS[arm]:g}-{seed}"
    given = recipe(
        settings,
        train=write(completions(ask(640, seed), ["plain"]), data / f"train-{seed}.jsonl"),
        validation=write(completions(ask(48, 0, held_out=True), ["plain"]), data / "validation.jsonl"),
        method={"type": "supervised"},
        steps=60,
        seed=seed,
        batch=4,
    )
    given["elastic"] = {"formats": FORMATS, "strength": STRENGTHS[arm]}
    _, result = run(settings, name, given)
    losses = result["elastic"]
    return losses | {f"{name} gap": losses[name] - losses["plain"] for name in FORMATS}


EVIDENCE = Evidence(
    "elastic",
    "An adapter trained over quantisation noise loses less held-out loss in nf4 than one trained without it.",
    tuple(STRENGTHS),
    measure,
    bars("nf4 gap", "held-out loss in nf4 less that as trained"),
    needs_model=True,
    outcome="Not as claimed. What nf4 costs falls from 0.137 to 0.118 nats, but by one seed of three alone, and the "
    "loss as trained rises from 0.064 to 0.072. int8 and fp8 cost less than a hundredth either way.",
)

if __name__ == "__main__":
    main(EVIDENCE)
