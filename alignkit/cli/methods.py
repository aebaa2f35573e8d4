"""`alignkit methods`: list the training methods."""

from typing import Annotated

import typer

from alignkit.cli import output


def methods(
    as_json: Annotated[
        bool, output.as_json("an array of methods, each with the JSON Schema of its options")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the page docs/methods.md")] = False,
) -> None:
    """List the training methods and their purposes."""
    from alignkit.methods.describe import described  # saves torch at start-up
    from alignkit.methods.describe import markdown as page

    if as_json:
        output.show_json(described())
    elif markdown:
        print(page(), end="")
    else:
        names = ("type", "rows", "description")
        output.rows(("type", "rows", "for"), ([method[name] for name in names] for method in described()))
        output.note("Options of each method: docs/methods.md, or alignkit methods --json")
