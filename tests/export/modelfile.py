"""A reader of Modelfiles after Ollama's documentation of the format, to check what is written for it.

The format: instructions of one line each, `NAME arguments`, names in any case; lines that begin with # are comments.
An argument between quotes, one or three on each side, may go over several lines; there are no escapes.
`PARAMETER` takes a name and a value.
"""

NAMES = {
    "from",
    "template",
    "system",
    "adapter",
    "license",
    "message",
    "parameter",
    "requires",
    "renderer",
    "parser",
}


def parse(text: str) -> list[tuple[str, str]]:
    """(instruction, argument) of each instruction; of a parameter, (its name, its value). Raises ValueError."""
    found = []
    lines = iter(text.split("\n"))
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name, _, argument = line.partition(" ")
        if name.lower() not in NAMES:
            raise ValueError(f"expected an instruction, found {line!r}")
        if name.lower() == "parameter":
            name, _, argument = argument.strip().partition(" ")
        argument = argument.strip(" ")
        while (value := unquoted(argument)) is None:
            argument += "\n" + next(lines)
        if not value:
            raise ValueError(f"{name} has no value")
        found.append((name.lower(), value))
    return found


def unquoted(argument: str) -> str | None:
    """The argument without its quotes; None if a quote is still open."""
    for quote in ('"""', '"'):
        if argument.startswith(quote):
            closed = len(argument) >= 2 * len(quote) and argument.endswith(quote)
            return argument[len(quote) : -len(quote)] if closed else None
    return argument
