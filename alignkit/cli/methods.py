"""`alignkit methods`: list the training methods."""

import json
from typing import Annotated

import typer
from rich.console import Console

from alignkit.cli import output


def methods(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all options with types, bounds and defaults.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/methods.md.")] = False,
) -> None:
    """List the training methods and their purposes."""
    from alignkit.methods.describe import described  # saves torch at start-up
    from alignkit.methods.describe import markdown as page

    if as_json:
        print(json.dumps(described(), indent=2))
    elif markdown:
        print(page(), end="")
    else:
        table = output.table("type", "rows", "for")
        for method in described():
            table.add_row(method["type"], method["rows"], method["description"])
        output.show(table)
        Console(stderr=True).print(
            "Options of each method: docs/methods.md, or alignkit methods --json", highlight=False
        )
