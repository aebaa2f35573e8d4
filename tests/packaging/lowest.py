"""An environment with the lowest version of each requirement that pyproject.toml allows, downloaded by pip.

`python -m tests.packaging.lowest FOLDER [EXTRA …]` makes it and lists what is in it.
"""

import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

from tests.packaging.environment import requirements

TOOLS = ("hypothesis", "pytest", "pytest-timeout", "scipy")
"""Needed to run tests in it, at any version."""


def lowest(texts: Iterable[str]) -> Iterator[str]:
    """Each requirement pinned to its lower bound; one that has none is left to the others."""
    for requirement in map(Requirement, texts):
        for bound in requirement.specifier:
            if bound.operator == ">=":
                extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
                yield f"{requirement.name}{extras}=={bound.version}"


def build(folder: Path, *extras: str) -> Path:
    """Make the environment; its interpreter. Raises CalledProcessError where the bounds do not fit together."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    subprocess.run([*pip, "install", "--quiet", *lowest(requirements(*extras)), *TOOLS], check=True)
    subprocess.run([*pip, "check"], check=True)
    return python


if __name__ == "__main__":
    made = build(Path(sys.argv[1]), *sys.argv[2:])
    subprocess.run([sys.executable, "-m", "pip", "--python", str(made), "list"], check=True)
