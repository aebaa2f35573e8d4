"""`alignkit completion`, and what a shell is answered."""

import os
import subprocess
import sys

import pytest

from alignkit.cli.completion import Shell
from tests.cli.conftest import Run


@pytest.mark.parametrize("shell", list(Shell))
def test_every_shell_gets_a_script(run: Run, shell: Shell) -> None:
    done = run("completion", shell.value)
    assert done.returncode == 0, done.stderr
    assert "_ALIGNKIT_COMPLETE" in done.stdout
    assert "_ALIGNKIT_COMPLETE" not in os.environ


def test_an_unknown_shell_is_refused(run: Run) -> None:
    assert run("completion", "tcsh").returncode == 2


def test_bash_completes_commands() -> None:
    variables = {"_ALIGNKIT_COMPLETE": "complete_bash", "COMP_WORDS": "alignkit jobs e", "COMP_CWORD": "2"}
    code = "import sys; sys.argv = ['alignkit']; from alignkit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.split() == ["estimate", "events"], done.stderr
