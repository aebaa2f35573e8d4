"""`python -m evidence` lists the experiments, with their claims and how far they have been run."""

import importlib
import json
from collections.abc import Iterator
from pathlib import Path

from evidence.harness import RESULTS, Evidence


def experiments() -> Iterator[Evidence]:
    """Yield the `EVIDENCE` of every script."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if "\nEVIDENCE = " in path.read_text(encoding="utf-8"):
            yield importlib.import_module(f"evidence.{path.stem}").EVIDENCE


def state(evidence: Evidence) -> str:
    """Tell how many seeds of every arm the committed result has."""
    path = RESULTS / f"{evidence.name}.json"
    if not path.is_file():
        return "not run yet"
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    seeds = min(len(runs.get(arm, {})) for arm in evidence.arms)
    return f"run with {seeds} seeds" if seeds else "begun"


def main() -> None:
    """Print one paragraph an experiment."""
    for evidence in experiments():
        needs = "the language model" if evidence.needs_model else "one core for minutes"
        print(f"python -m evidence.{evidence.name}\n  {evidence.claim}\n  {state(evidence)}; needs {needs}\n")


if __name__ == "__main__":
    main()
