"""The JSON of commands that print no object of the API: the keys that stay."""

from typing import Any

STEPS = dict.fromkeys(("computing", "optimizer", "communication", "drawing", "scoring", "step"))
ESTIMATE = dict.fromkeys(
    (
        "device",
        "devices",
        "stage",
        "micro_batch_size",
        "trainable",
        "models",
        "lengths",
        "fits",
        "steps",
        "tokens",
        "seconds",
        "cost",
    )
) | {
    "memory": {"kinds": {"*": None}, "peak": None, "moment": None, "host": None},
    "step_seconds": STEPS | {"computing": {"*": None}},
    "disk": dict.fromkeys(("checkpoint", "checkpoints", "result", "total")),
}
LENGTHS = dict.fromkeys(("p50", "p90", "p99", "maximum"))
COUNTS = ("rows", "max_length", "truncated", "dropped", "no_signal", "no_signal_words", "duplicates")
SHAPES: dict[str, Any] = {
    "data check": {
        "files": [
            dict.fromkeys(("name", "ok", "rows", "bad_rows")) | {"findings": [None], "notices": [None]}
        ],
        "statistics": dict.fromkeys((*COUNTS, "duplicate_prompts", "overlap", "prompt_overlap"))
        | {"prompt": LENGTHS, "answers": {"*": LENGTHS}, "total": LENGTHS},
    },
    "divergences": [dict.fromkeys(("name", "curvature", "about"))],
    "estimate": {"smallest": None, "estimates": [ESTIMATE]},
    "jobs sweep": {
        "sweep": None,
        "id": None,
        "compare": None,
        "jobs": [{"job": None, "values": {"*": None}}],
    },
    "methods": [
        dict.fromkeys(
            ("type", "description", "rows", "learning_rate", "options", "hyperparameters", "terms", "tunable")
        )
    ],
    "models list": [None],
    "settings": [dict.fromkeys(("variable", "value", "default", "is_set", "meaning"))],
    "sweep": {
        "sweep": None,
        "report": None,
        "points": [
            dict.fromkeys(("point", "status", "step", "reason"))
            | {"values": {"*": None}, "metrics": {"*": None}}
        ],
    },
    "terms": [
        dict.fromkeys(
            (
                "type",
                "description",
                "effect",
                "paper",
                "fidelity",
                "code_read",
                "methods",
                "options",
                "hyperparameters",
            )
        )
    ],
}
"""Command -> the shape of what it prints with --json. None is any value, "*" any name."""


def written(shape: Any) -> str:
    """A shape in one line, such as [{name, values: {*}}]."""
    if isinstance(shape, list):
        return f"[{written(shape[0])}]"
    if shape is None:
        return ""
    parts = (name if inner is None else f"{name}: {written(inner)}" for name, inner in shape.items())
    return f"{{{', '.join(parts)}}}"
