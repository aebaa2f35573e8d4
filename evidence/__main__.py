"""Lists the experiments: `python -m evidence`, or as a page, `python -m evidence --markdown > docs/evidence.md`."""

import importlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evidence.harness import RESULTS, Evidence

HEAD = """# Evidence

```sh
python -m evidence                           # lists all, with their claims and how far they have been run
python -m evidence.nested_ranks              # runs what is missing, and writes the result and the plot
python -m evidence.nested_ranks --out again --work again     # runs all of it anew, and writes both to again/
make evidence-smoke                          # repeats the smallest; fails if a number differs by more than a tenth
```

Those on a language model need `alignkit models import smollm2-135m-instruct --home .alignkit` once.

Each experiment tries one claim. It runs its arms with several seeds, resumes where it was stopped, and writes every
number, the versions and the machines to `evidence/results/`. An interval is Student's t over the seeds, 95 %: three
seeds give wide ones. Seeds change what is trained on and what is drawn, not the questions that measure, so an
interval does not tell how other questions would do.
`evidence/README.md` in the source tells how to add one.

"""


def experiments() -> Iterator[Evidence]:
    """Yield the `EVIDENCE` of every script."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if "\nEVIDENCE = " in path.read_text(encoding="utf-8"):
            yield importlib.import_module(f"evidence.{path.stem}").EVIDENCE


def seeds_run(evidence: Evidence) -> int | None:
    """Return how many seeds of every arm the committed result has; None if there is no result."""
    path = RESULTS / f"{evidence.name}.json"
    if not path.is_file():
        return None
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    return min(len(runs.get(arm, {})) for arm in evidence.arms)


def state(evidence: Evidence) -> str:
    """Tell how far an experiment has been run."""
    seeds = seeds_run(evidence)
    if seeds is None:
        return "not run yet"
    return f"run with {seeds} seeds" if seeds >= evidence.seeds else "begun"


def markdown() -> str:
    """Return the page: what was run with its plot and numbers, then what was not."""
    done = [one for one in experiments() if (seeds_run(one) or 0) >= one.seeds]
    waiting = [one for one in experiments() if one not in done]
    text = HEAD + "".join(map(_section, done))
    if not waiting:
        return text.rstrip() + "\n"
    rows = "".join(f"| `{one.name}` | {one.claim} | {state(one)} |\n" for one in waiting)
    return text + f"## Not run to the end\n\n| script | claim | |\n| --- | --- | --- |\n{rows}"


def _section(evidence: Evidence) -> str:
    title = evidence.name.replace("_", " ")
    said = f"**Claim.** {evidence.claim}\n\n**What came out.** {evidence.outcome}"
    others = "".join(
        f"### {title} on {model}\n\n{outcome}\n\n{_result(evidence, model)}"
        for model, outcome in evidence.elsewhere.items()
    )
    return f"## {title}\n\n{said}\n\n{_result(evidence)}{others}"


def _result(evidence: Evidence, other: str = "") -> str:
    """The command, the plot and the numbers, with `other` of that language model."""
    written = json.loads((RESULTS / other / f"{evidence.name}.json").read_text(encoding="utf-8"))
    summary: dict[str, dict[str, Any]] = written["summary"]
    names = list(dict.fromkeys(name for metrics in summary.values() for name in metrics))
    head = f"| | {' | '.join(name.replace('|', chr(92) + '|') for name in names)} |\n|{' --- |' * (len(names) + 1)}\n"
    rows = "".join(
        f"| {arm} | {' | '.join(_shown(metrics.get(name)) for name in names)} |\n"
        for arm, metrics in summary.items()
    )
    model = f" on {written['settings']['model']}" if evidence.needs_model else ", a toy"
    seeds = min(map(len, written["runs"].values()))
    command = f"`{written['command']}{options(evidence, written['runs'], seeds) if other else ''}`{model}"
    picture = f"![{evidence.name.replace('_', ' ')}]({Path('evidence', other, evidence.name)}.png)"
    return f"{command}, {seeds} seed{'s' * (seeds > 1)}.\n\n{picture}\n\n{head}{rows}\n"


def options(evidence: Evidence, runs: Mapping[str, Any], seeds: int) -> str:
    """The options that repeat a result on another language model."""
    arms = (
        ["--arms", *(arm for arm in evidence.arms if arm in runs)] if len(runs) < len(evidence.arms) else []
    )
    return " " + shlex.join(["--model", "FOLDER", "--seeds", str(seeds), *arms])


def _shown(bounds: dict[str, float] | None) -> str:
    """A mean with its interval, where it has one."""
    if bounds is None:
        return ""
    interval = f" ({bounds['low']:.3g} to {bounds['high']:.3g})" if bounds["low"] < bounds["high"] else ""
    return f"{bounds['mean']:.3g}{interval}"


def main() -> None:
    """Print one paragraph an experiment, or with `--markdown` the page."""
    if "--markdown" in sys.argv[1:]:
        print(markdown(), end="")
        return
    for evidence in experiments():
        needs = "the language model" if evidence.needs_model else "one core for minutes"
        print(f"python -m evidence.{evidence.name}\n  {evidence.claim}\n  {state(evidence)}; needs {needs}\n")


if __name__ == "__main__":
    main()
