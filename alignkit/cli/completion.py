"""`alignkit completion`: what a shell needs to complete commands and options."""

import os
from enum import StrEnum
from typing import Annotated

import typer

NAME = "alignkit"
VARIABLE = "_ALIGNKIT_COMPLETE"


class Shell(StrEnum):
    """A shell that can complete commands."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


def completion(
    context: typer.Context, shell: Annotated[Shell, typer.Argument(help="the shell to print the script for")]
) -> None:
    """Print a script that lets a shell complete commands; eval "$(alignkit completion bash)" turns it on."""
    os.environ[VARIABLE] = f"source_{shell.value}"
    try:
        context.find_root().command.main(args=[], prog_name=NAME, complete_var=VARIABLE)
    finally:
        del os.environ[VARIABLE]
