"""`alignkit terms`: list what a recipe's `terms` may add to a method's loss."""

import json
from typing import Annotated

import typer
from rich.console import Console

from alignkit.cli import output


def terms(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all options with types, bounds and defaults.")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page docs/terms.md.")] = False,
) -> None:
    """List the terms and their purposes."""
    from alignkit.methods.describe_terms import described  # saves torch at start-up
    from alignkit.methods.describe_terms import markdown as page

    if as_json:
        print(json.dumps(described(), indent=2))
    elif markdown:
        print(page(), end="")
    else:
        table = output.table("type", "adds", "methods", "for")
        for term in described():
            table.add_row(term["type"], term["effect"], ", ".join(term["methods"]), term["description"])
        output.show(table)
        Console(stderr=True).print(
            "Options of each term: docs/terms.md, or alignkit terms --json", highlight=False
        )
