"""Printing of tables."""

import os
import sys

from rich.console import Console
from rich.table import Table

PIPED_WIDTH = 240
"""Width in columns if the output is piped, so that a script gets every id and name on one line."""


def table(*headers: str) -> Table:
    """An empty table; long cells wrap to the next line, and nothing is cut."""
    made = Table()
    for header in headers:
        made.add_column(header, overflow="fold")
    return made


def show(printed: Table) -> None:
    """Print to standard output, as wide as the terminal, COLUMNS, or PIPED_WIDTH if piped."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=PIPED_WIDTH if piped else None).print(printed)
