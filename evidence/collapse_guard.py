"""The collapse guard on thirty runs, judged by a measure that it does not see and that was fixed before they ran.

A checkpoint is ruined if the NLL of preferred answers about notes, which no run trains on, has risen by more than a
nat a token. The guard draws four answers at the same steps. Rates go from usual ones to those that ruin any model.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from evidence.harness import ROOT, Evidence, Found, Settings, Values, main
from evidence.questions import Question, ask, completions, pairs, write
from evidence.small_runs import Asked, recipe, run

RUINED = 1.0
"""Rise of the NLL elsewhere, in nats per token, from which a checkpoint counts as ruined."""
STEPS, EVERY, BATCH = 32, 8, 2
METHODS: dict[str, dict[str, Any]] = {
    "f_dpo": {"type": "f_dpo", "beta": 0.1},
    "supervised": {"type": "supervised"},
    "mapo": {"type": "mapo"},
}
RATES = (2e-4, 1e-3, 5e-3, 2e-2, 5e-2)
ARMS = tuple(f"{method} at {rate:g}" for method in METHODS for rate in RATES)
MEASURES = ("answers_reference_logp", "answers_repetition", "answers_good_logp")


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
    path, _ = run(settings, f"collapse_guard/{ARMS.index(arm)}-{seed}", given, keep_checkpoints=True)
    ruined = _ruined(settings, path)
    alarms, measures = _verdicts(path)
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    return {
        "ruined at step": min((step for step, risen in ruined.items() if risen > RUINED), default=0),
        "alarm at step": min(alarms, default=0),
        "last rise of the NLL elsewhere": ruined[max(ruined)],
        **measures,
    }


def _ruined(settings: Settings, path: Path) -> dict[int, float]:
    """Step -> rise of the NLL elsewhere."""
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


def draw(found: Found, axis: Any) -> None:
    """Steps of ruin and alarm of every run; 0 where there was none."""
    for at, arm in enumerate(found.runs):
        for seed, values in found.runs[arm].items():
            x = at + 0.2 * seed
            for name, mark in (("ruined at step", "x"), ("alarm at step", "o")):
                color = "black" if mark == "x" else "tab:red"
                label = name if at + seed == 0 else None
                axis.plot(x, values[name], mark, color=color, mfc="none", label=label)
    axis.set(ylabel="step (0: never)", xticks=range(len(found.runs)))
    axis.set_xticklabels(list(found.runs), rotation=60, ha="right", fontsize=6)
    axis.legend()


EVIDENCE = Evidence(
    "collapse_guard",
    "The guard finds the runs that an independent measure calls ruined, at the same evaluation, and no others.",
    ARMS,
    measure,
    draw,
    seeds=2,
    needs_model=True,
)

if __name__ == "__main__":
    main(EVIDENCE)
