"""BD-KD on SmolLM2 and every third of its layers: the balance of both KLs, with a teacher that trains or is frozen.

Every arm trains all weights of the student for as many steps at the best of the same rates. BD-KD's KLs have three
times the weight of plain distillation's, so the KL stands beside it with that weight too, and the plain sum of both
KLs with the same total. With a teacher that trains, that sum is mutual learning. A new teacher is the untrained
language model; the others were trained on other rows before.
"""

import json
from pathlib import Path

from evidence.harness import Evidence, Settings, Values, bars, main
from evidence.students import distilled, of_student, taught

ARMS = (
    "labels alone",
    "KL",
    "KL, three times the weight",
    "both KLs",
    "BD-KD",
    "both KLs, new teacher trains",
    "BD-KD, new teacher trains",
)
TEACHERS = {"NLL": "teacher_cross_entropy", "accuracy": "teacher_accuracy", "ECE": "teacher_ece"}
"""What is told of a teacher -> the metric of a run in which it trains."""


def measure(arm: str, seed: int, settings: Settings) -> Values:
    """Distil, and measure student and teacher on questions that did not choose the rate."""
    student = distilled(settings, arm, seed)
    found = of_student(settings, student.model) | {"rate": student.rate}
    if arm.endswith("trains"):
        teachers = {name: student.metrics[f"valid_{metric}"] for name, metric in TEACHERS.items()}
    else:
        teachers = {name: taught(settings)[0][name] for name in TEACHERS}
    own = {f"teacher's {name}": value for name, value in teachers.items()} if arm != "labels alone" else {}
    return found | own | {"gate share over time": _gate_shares(student.folder)}


def _gate_shares(folder: Path) -> list[float]:
    """The share of tokens at which the gate favoured the forward KL, at each logged step; none without a gate."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = (json.loads(line) for line in lines)
    metrics = (event["data"] for event in events if event["type"] == "metrics")
    return [one["train_gate_share"] for one in metrics if "train_gate_share" in one]


EVIDENCE = Evidence(
    "balanced",
    "BD-KD's student is better calibrated than those of plain distillation and of mutual learning, at no loss of "
    "accuracy.",
    ARMS,
    measure,
    bars("ECE", "ECE of the student's tokens"),
    outcome="In part. From a frozen teacher that knows the answers, BD-KD's student is better calibrated than "
    "plain distillation's (ECE 0.044 and 0.061, lower by 0.002 to 0.033 over the same seeds) and more "
    "accurate (0.740 and 0.712, by 0.002 to 0.056), at the same NLL of 0.81. A KL of three times the "
    "weight, which is what BD-KD's sum to, is beaten in accuracy just as much, in ECE not with certainty, "
    "and against the plain sum of both KLs (accuracy 0.730, ECE 0.046) nothing is certain. So the reverse "
    "KL may do most of it: the gate favours the forward one for 2 % of the tokens at first and for 16 % "
    "at the end. With an untrained teacher that trains along, BD-KD is ahead of mutual learning on "
    "average (NLL 0.81 and 0.82, ECE 0.080 and 0.097, the same accuracy); only its teacher is so for sure "
    "(NLL 0.38 and 0.50, ECE 0.159 and 0.196). A teacher that knows the answers and trains on was not "
    "tried.",
    elsewhere={
        "gemma-3-270m": "One seed, at one rate for both, and against the claim: BD-KD's student has an NLL of 0.96, "
        "an accuracy of 0.70 and an ECE of 0.070, KL's 0.41, 0.89 and 0.026, from the same frozen "
        "teacher. At this rate BD-KD has not come far in 60 steps.",
    },
    needs_model=True,
)

if __name__ == "__main__":
    main(EVIDENCE)
