"""What commands print: lines and tables for people, JSON for programs."""

import json
import os
import sys
import time
from collections.abc import Iterable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alignkit.errors import AlignkitError
from alignkit.terminal import visible

PIPED_WIDTH = 10_000
"""Width in columns that a table may have if the output is piped, so that a script gets every row on one line."""
SIZES = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")
LEVELS = {"warn": "yellow", "error": "red"}
"""Level of an event -> its colour."""
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]


def as_json(shape: str) -> Any:
    """The option --json of a command, whose help says what is printed."""
    return typer.Option("--json", help=f"print JSON: {shape}")


def show_json(value: Any) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, default=dict))


def say(text: str, *, style: str | None = None, console: Console | None = None) -> None:
    """Print text to standard output, unwrapped and with control characters made visible; styled on a terminal."""
    _print(console or Console(), text, style)


def note(text: str, *, style: str | None = None) -> None:
    """Print text to standard error, where it is no part of what a script reads."""
    _print(Console(stderr=True), text, style)


def error(text: str) -> None:
    """Print an error to standard error, unwrapped, after a red "error:"."""
    line = Text.assemble(("error:", "red"), " ", visible(text))
    Console(stderr=True).print(line, soft_wrap=True)


def _print(console: Console, text: str, style: str | None) -> None:
    if console.is_terminal:
        console.print(Text(visible(text), style or ""), soft_wrap=True)
    else:  # as it is: rich would expand tabs
        print(visible(text), file=console.file)


def table(*headers: str) -> Table:
    """An empty table; long cells wrap to the next line, and nothing is cut."""
    made = Table()
    for header in headers:
        made.add_column(header, overflow="fold")
    return made


def rows(headers: Iterable[str], found: Iterable[Iterable[str]]) -> None:
    """Print a table of plain texts."""
    made = table(*headers)
    for row in found:
        made.add_row(*(Text(visible(cell)) for cell in row))
    show(made)


def facts(found: Iterable[tuple[str, str]]) -> None:
    """Print names and values, a line each; those without a value are left out."""
    told = [(name, value) for name, value in found if value]
    width = max((len(name) for name, _ in told), default=0)
    for name, value in told:
        say(f"{name:<{width}}  {value}")


def show(printed: Table) -> None:
    """Print to standard output, as wide as the terminal, COLUMNS, or PIPED_WIDTH if piped."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    Console(width=PIPED_WIDTH if piped else None).print(printed)


def ask(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone, unless `yes`; ends with status 1 if the answer is no.

    Raises AlignkitError if there is no terminal to ask on.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise AlignkitError(f"{question} There is no terminal to ask on: give --yes to do it")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def size(count: int | None) -> str:
    """Bytes in the unit that suits them, such as 1.5 GiB; empty for None."""
    if count is None:
        return ""
    rest, unit = float(count), 0
    while rest >= 1024 and unit < len(SIZES) - 1:
        rest, unit = rest / 1024, unit + 1
    return f"{count} bytes" if unit == 0 else f"{rest:.1f} {SIZES[unit]}"


def duration(seconds: float | None) -> str:
    """Seconds as 45 s, 3 min 20 s, 2 h 5 min or 3 d 4 h; empty for None."""
    if seconds is None:
        return ""
    whole = max(0, round(seconds))
    for most, unit, large, small in ((3600, 60, "min", "s"), (86400, 3600, "h", "min")):
        if 60 <= whole < most:
            return f"{whole // unit} {large} {whole % unit // (unit // 60)} {small}"
    return f"{whole} s" if whole < 60 else f"{whole // 86400} d {whole % 86400 // 3600} h"


def moment(at: float | None) -> str:
    """A time in seconds since 1970 as local date and time; empty for None."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(at))


def money(amount: float, currency: str) -> str:
    """An amount of money: with cents, or two significant digits of less than a cent."""
    return f"{amount:,.2f} {currency}" if amount >= 0.01 or amount == 0 else f"{amount:.2g} {currency}"


def number(value: float | None) -> str:
    """A measure with four digits; "-" for one that was not finite."""
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
