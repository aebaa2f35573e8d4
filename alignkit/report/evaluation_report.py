"""Writes the report of an evaluation: evaluation.html and evaluation.json in the run's folder."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.report import page
from alignkit.run.folder import RunFolder


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation found, and of what."""

    step: int | None
    """Step of the checkpoint that was evaluated; None for the run's result."""
    before: dict[str, float | None]
    after: dict[str, float | None]
    answers: dict[str, Any]
    judge: str | None = None
    """Name of the judge's model."""
    reward_model: str | None = None

    def as_json(self, name: str) -> dict[str, Any]:
        """The evaluation as JSON values: see docs/evaluation.md."""
        found = {
            "run": name,
            "step": self.step,
            "metrics": {"untrained": self.before, "trained": self.after},
            **self.answers,
        }
        for key, value in (("judge", self.judge), ("reward_model", self.reward_model)):
            if key in found:
                found[key] = {"model": value, **found[key]}
        return found


def write_evaluation(folder: RunFolder, found: Evaluated) -> Path:
    """Write both files and return the path of the page; those of an earlier evaluation are replaced."""
    values = found.as_json(folder.path.resolve().name)
    path = folder.path / "evaluation.html"
    page.put_page(folder.path / "evaluation.json", json.dumps(values, ensure_ascii=False, indent=1))
    groups = values.get("groups", {})
    rated: list[str] = [by for by in ("judge", "reward_model") if by in values]
    page.put_page(
        path,
        page.render(
            "evaluation.html",
            name=values["run"],
            step=found.step,
            against=values.get("against"),
            rates=[(by.replace("_", " "), values[by], _notes(values[by])) for by in rated],
            measures=measures(found),
            group_titles=[
                "group",
                "rows",
                *(f"win rate by {by.replace('_', ' ')}" for by in rated),
                "words",
                "distinct 2",
            ],
            groups=[(name, _cells(one, rated)) for name, one in groups.items()],
            answers=values.get("answers", []),
        ),
    )
    return path


def measures(found: Evaluated) -> list[tuple[str, float | None, float | None]]:
    """(name, untrained, trained) of every metric and of every measure of the answers."""
    names = sorted(found.before.keys() | found.after.keys())
    rows = [(name, found.before.get(name), found.after.get(name)) for name in names]
    diversity = found.answers.get("diversity", {})
    return rows + [(f"answers_{name}", one["untrained"], one["trained"]) for name, one in diversity.items()]


def _notes(rate: dict[str, Any]) -> str:
    found = [str(rate["model"])] if rate.get("model") else []
    if rate.get("consistent") is not None:
        found.append(f"{rate['consistent']:.0%} the same verdict in both orders")
    if "trained" in rate:
        found.append(f"mean reward {page.number(rate['trained'])}, baseline {page.number(rate['baseline'])}")
    return "; ".join(found)


def _cells(group: dict[str, Any], rated: list[str]) -> list[Any]:
    diversity = group["diversity"]
    return [
        group["rows"],
        *(group[by]["rate"] for by in rated),
        diversity["words"]["trained"],
        diversity["distinct_2"]["trained"],
    ]
