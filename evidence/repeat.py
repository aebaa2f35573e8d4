"""Runs an experiment again and compares every number with the committed one: `python -m evidence.repeat NAME`.

Nothing of the committed result is read before the numbers are there. Exits with 1 if one of them differs by more than
`TOLERANCE` of the committed value.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evidence.harness import MODEL, RESULTS, WORK, Evidence, Settings, measured

SMALLEST = "align_groups"
"""The experiment that takes least time."""
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Compared:
    """One number of one run, as committed and as found again."""

    arm: str
    seed: int
    metric: str
    committed: float
    found: float

    @property
    def agrees(self) -> bool:
        """Whether they differ by at most `TOLERANCE` of the committed number."""
        return abs(self.found - self.committed) <= TOLERANCE * abs(self.committed)


def repeat(
    evidence: Evidence, settings: Settings, *, seeds: int, arms: Sequence[str], results: Path = RESULTS
) -> list[Compared]:
    """Measure arms and seeds anew and compare them with NAME.json in `results`."""
    found = {arm: {seed: measured(evidence, arm, seed, settings) for seed in range(seeds)} for arm in arms}
    runs = json.loads((results / f"{evidence.name}.json").read_text(encoding="utf-8"))["runs"]
    return [
        Compared(arm, seed, metric, value, float(found[arm][seed][metric]))
        for arm in arms
        for seed in range(seeds)
        for metric, value in runs[arm][str(seed)].items()
        if not isinstance(value, list)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Repeat an experiment from the command line, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m evidence.repeat", description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", default=SMALLEST, help=f"experiment; default: {SMALLEST}")
    parser.add_argument("--seeds", type=int, help="number of seeds, from 0; default: the experiment's")
    parser.add_argument("--model", default=MODEL, help="folder of the language model, where one is trained")
    parser.add_argument("--data", type=Path, help="file of rows, for an experiment that needs one")
    given = parser.parse_args(argv)
    evidence: Evidence = importlib.import_module(f"evidence.{given.name}").EVIDENCE
    began = time.monotonic()
    settings = Settings(model=given.model, work=WORK / "repeat", data=given.data)
    compared = repeat(evidence, settings, seeds=given.seeds or evidence.seeds, arms=evidence.arms)
    for one in compared:
        sign = " " if one.agrees else "≠"
        print(
            f"{sign} {one.arm}, seed {one.seed}, {one.metric}: {one.found:.4g}, committed {one.committed:.4g}"
        )
    apart = sum(not one.agrees for one in compared)
    print(
        f"\n{evidence.claim}\n{len(compared) - apart} of {len(compared)} numbers are within {TOLERANCE:.0%} of the "
        f"committed ones ({time.monotonic() - began:.0f} s)."
    )
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
