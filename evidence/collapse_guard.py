"""The collapse guard on 36 runs, judged by a rise of the NLL on prompts that it does not see.

The judge was fixed before the runs.

A checkpoint is ruined if the NLL of preferred answers about notes, which no run trains on, has risen by more than a
nat a token. The guard draws four answers at the same steps. Rates go from usual ones to those that ruin any model,
with three more for f-DPO where runs become ruined.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from alignkit.evaluate.answers import Limits
from evidence.harness import ROOT, Evidence, Found, Settings, Values, main
from evidence.questions import Question, ask, completions, pairs, write
from evidence.small_runs import Asked, named, recipe, run

RUINED = 1.0
"""Rise of the NLL elsewhere, in nats per token, from which a checkpoint counts as ruined."""
STEPS, EVERY, BATCH = 32, 8, 2
METHODS: dict[str, dict[str, Any]] = {
    "f_dpo": {"type": "f_dpo", "beta": 0.1},
    "supervised": {"type": "supervised"},
    "mapo": {"type": "mapo"},
}
RATES = (2e-4, 1e-3, 5e-3, 2e-2, 5e-2)
BETWEEN = (3e-4, 5e-4, 7e-4)
"""Rates of f-DPO between one that is sound and one that ruins within `EVERY` steps."""
ARMS = (
    *(f"{method} at {rate:g}" for method in METHODS for rate in RATES),
    *(f"f_dpo at {rate:g}" for rate in BETWEEN),
)
MEASURES = {"answers_reference_logp": -1, "answers_repetition": 1, "answers_good_logp": -1}
"""Measure of the guard -> the direction in which it gets worse."""


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Train with the guard on `warn`, and compare its verdicts with the judgement of each checkpoint."""
    method, rate = arm.split(" at ")
    folder, asked = settings.work / "collapse_guard", ask(12, 0, held_out=True)
    kind = "pairs" if method != "supervised" else "completions"

    def rows(of: list[Question]) -> list[dict[str, Any]]:
        return pairs(of, "plain", "long") if kind == "pairs" else completions(of, ["plain"])

    given = recipe(
        settings,
        train=write(rows(ask(STEPS * BATCH, seed)), folder / f"{kind}-{seed}.jsonl"),
        validation=write(rows(asked), folder / f"{kind}-held-out.jsonl"),
        method=METHODS[method],
        steps=STEPS,
        seed=seed,
        batch=BATCH,
    )
    every = settings.steps(EVERY, 1)
    own = {"learning_rate": float(rate), "eval_steps": every, "save_steps": every, "keep_best": False}
    given["training"] |= own
    given["collapse_guard"] = {"on_collapse": "warn"}
    path, _ = run(settings, f"collapse_guard/{named(arm)}-{seed}", given, keep_checkpoints=True)
    rises = _rises(settings, path)
    alarms, measures = _verdicts(path)
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    return {
        "ruined at step": min((step for step, risen in rises.items() if risen > RUINED), default=0),
        "alarm at step": min(alarms, default=0),
        "last rise of the NLL elsewhere": rises[max(rises)],
        **measures,
    }


def _rises(settings: Settings, path: Path) -> dict[int, float]:
    """Step -> rise of the NLL elsewhere; kept beside the run, whose checkpoints do not stay."""
    kept = path / "rises.json"
    if not kept.is_file():
        kept.write_text(json.dumps(_measured_rises(settings, path)), encoding="utf-8")
    return {int(step): risen for step, risen in json.loads(kept.read_text(encoding="utf-8")).items()}


def _measured_rises(settings: Settings, path: Path) -> dict[int, float]:
    lines = (ROOT / "recipes" / "demo" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    notes = [json.loads(line) for line in lines[:: 30 if settings.smoke else 8]]
    rows = [(one["input"]["messages"][-1]["content"], one["preferred_output"][0]["content"]) for one in notes]

    def nll(adapter: Path | None) -> float:
        return -sum(Asked(settings, adapter).logps(rows)) / len(rows)

    before = nll(None)
    checkpoints = {
        int(one.name.rpartition("-")[2]): one for one in (path / "checkpoints").glob("checkpoint-*")
    }
    return {step: nll(checkpoints[step]) - before for step in sorted(checkpoints)}


def _verdicts(path: Path) -> tuple[list[int], dict[str, list[float]]]:
    """(steps at which the guard found a collapse, its measures by name over the evaluations)."""
    events = [json.loads(line) for line in (path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    data = [event.get("data") or {} for event in events]
    alarms = [one["step"] for one in data if one.get("sound") is False]
    found: dict[str, list[float]] = {name: [] for name in MEASURES}
    for one in data:
        for key, value in one.items():
            for name in MEASURES:
                if key.endswith(name):
                    found[name].append(value)
    return alarms, found


def worse(found: Found, measure: str) -> list[tuple[float, bool]]:
    """A pair for each evaluation: how far the measure got worse, and whether the model is ruined."""
    rows = []
    for runs in found.runs.values():
        for values in runs.values():
            series: Any = values[measure]
            ruined: Any = values["ruined at step"]
            rows += [
                (MEASURES[measure] * (value - series[0]), 0 < ruined <= EVERY * at)
                for at, value in enumerate(series[1:], start=1)
            ]
    return rows


def trade(rows: list[tuple[float, bool]], limit: float) -> tuple[float, float]:
    """(share of the sound evaluations above the limit, share of the ruined ones above it)."""

    def share(of: bool) -> float:  # noqa: FBT001
        chosen = [far > limit for far, ruined in rows if ruined is of]
        return sum(chosen) / max(len(chosen), 1)

    return share(False), share(True)


def draw(found: Found, axis: Any) -> None:
    """For each measure: ruined evaluations that it finds against sound ones that it calls ruined, over its limit."""
    limits = Limits()
    defaults = (limits.reference_logp_drop, limits.repetition_rise, limits.good_logp_drop)
    for measure, default in zip(MEASURES, defaults, strict=True):
        rows = worse(found, measure)
        points = [trade(rows, limit) for limit in sorted({far for far, _ in rows} | {-math.inf})]
        label = f"{measure.removeprefix('answers_')}, filled: {default:g}"
        line = axis.plot(*zip(*points, strict=True), label=label)[0]
        axis.plot(*trade(rows, default), "o", color=line.get_color())
    axis.set(xlabel="sound evaluations called ruined, share", ylabel="ruined evaluations found, share")
    axis.legend(loc="lower right")


EVIDENCE = Evidence(
    "collapse_guard",
    "The guard finds the runs that an independent measure calls ruined, at the same evaluation, and no others.",
    ARMS,
    measure,
    draw,
    seeds=2,
    needs_model=True,
    outcome="In part. At today's default limits the guard finds all 20 ruined runs of 36 and "
    "calls none of the 16 sound ones ruined: 18 at the evaluation that the judge names, one an "
    "evaluation before it and one after. Alarms were computed from the recorded measures. At the "
    "earlier limit of 2 for `good_logp` both runs of f-DPO at 5e-4 are missed and four others found "
    "late. The limit of 1 was suggested by the first thirty runs; on the six later ones, all f-DPO, "
    "it finds all four ruined (two on time) and neither sound one. Sound runs lower `good_logp` by "
    "at most 0.72. Ruined evaluations have 0.97 or more, and the evaluation before a ruin already "
    "had 1.12, so they overlap. `good_logp` is the judge's own kind of measure, with its threshold, "
    "on other prompts; alone it finds 99 % of the ruined evaluations. The drawn answers alone find "
    "14 of the 20 runs and none of f-DPO between 5e-4 and 1e-3: `reference_logp` finds 73 % of the "
    "ruined evaluations and `repetition`, which rose by at most 0.35, none. Whether the ruined "
    "models' answers are bad was not read. No false alarm in 16 runs still allows a rate of a fifth, "
    "and only four of the 16 lowered `good_logp` at all. All is one model and short runs. In the "
    "table, step 0 stands for never.",
)

if __name__ == "__main__":
    main(EVIDENCE)
