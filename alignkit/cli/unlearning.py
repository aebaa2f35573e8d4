"""`alignkit unlearn`: unlearning in two stages."""

from pathlib import Path
from typing import Annotated

import typer


def unlearn(
    negatives: Annotated[Path, typer.Argument(help="file of prompts with answers that must not be given")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value for both stages, such as training.max_steps=20")
    ] = None,
    positives: Annotated[Path, typer.Option(help="file of rows with wanted answers")] = ...,  # type: ignore[assignment]
    model: Annotated[str, typer.Option(help="the model to start from, a folder or a name")] = ...,  # type: ignore[assignment]
    output_dir: Annotated[Path, typer.Option(help="folder of all stages")] = Path("runs/unlearn"),
    seeds: Annotated[int, typer.Option(min=1, max=16, help="adapters that are trained on the negatives")] = 2,
    weight: Annotated[float, typer.Option(min=0, help="weight of the push away from them")] = 1.0,
    method: Annotated[str, typer.Option(help="method of the second stage")] = "supervised",
) -> None:
    """Unlearn answers: train adapters on them, then train on wanted answers away from those adapters."""
    from alignkit.unlearning import unlearn as run_both  # saves torch at start-up

    result = run_both(
        negatives,
        positives,
        model=model,
        output=output_dir,
        seeds=seeds,
        weight=weight,
        method=method,
        overrides=overrides or (),
    )
    print(f"Unlearned: {result}")
