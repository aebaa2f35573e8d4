"""`alignkit terms`: list what a recipe's `terms` may add to a method's loss."""

from typing import Annotated

import typer

from alignkit.cli import output


def terms(
    as_json: Annotated[
        bool, output.as_json("an array of terms, each with the JSON Schema of its options")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the page docs/terms.md")] = False,
) -> None:
    """List the terms and their purposes."""
    from alignkit.methods.describe_terms import described  # saves torch at start-up
    from alignkit.methods.describe_terms import markdown as page

    if as_json:
        output.show_json(described())
    elif markdown:
        print(page(), end="")
    else:
        output.rows(
            ("type", "adds", "methods", "for"),
            (
                (term["type"], term["effect"], ", ".join(term["methods"]), term["description"])
                for term in described()
            ),
        )
        output.note("Options of each term: docs/terms.md, or alignkit terms --json")
