"""How commands print tables."""

import os
import sys

from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 240
"""Columns where nobody looks: a script that reads the table gets every id and name on one line."""


def table(*headers: str) -> Table:
    """An empty table; what does not fit into a column goes on in the next line, and nothing is cut."""
    made = Table()
    for header in headers:
        made.add_column(header, overflow="fold")
    return made


def show(printed: Table) -> None:
    """Print to standard output, as wide as the terminal, or COLUMNS, or what a pipe is given."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=PIPED_WIDTH if piped else None).print(printed)
