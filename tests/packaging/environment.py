"""Environments without downloads: links to those of this environment's packages that a set of requirements names."""

import ast
import sys
import sysconfig
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.tree import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SITE = Path(sysconfig.get_path("purelib"))


def requirements(*extras: str) -> list[str]:
    """The library's requirements and those of `extras`."""
    return [*PROJECT["dependencies"], *(text for extra in extras for text in declared(extra))]


def declared(extra: str) -> list[str]:
    """The requirements of one extra."""
    found: list[str] = PROJECT["optional-dependencies"][extra]
    return found


def closure(texts: Iterable[str]) -> Iterator[str]:
    """Names of the packages that these requirements bring here, theirs included.

    Raises PackageNotFoundError for one that is not installed.
    """
    done: set[tuple[str, frozenset[str]]] = set()
    left = [Requirement(text) for text in texts]
    while left:
        need = left.pop()
        name = canonicalize_name(need.name)
        if (name, frozenset(need.extras)) in done:
            continue
        done.add((name, frozenset(need.extras)))
        yield name
        for text in requires(name) or ():
            further = Requirement(text)
            wanted = need.extras or {""}
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in wanted):
                left.append(further)


def link(names: Iterable[str], site: Path) -> None:
    """Link the packages' files of this environment into the folder `site`."""
    for name in set(names):
        for top in _top_level(distribution(name)):
            target, source = site / top, SITE / top
            if source.exists() and not target.exists():
                target.symlink_to(source)


def _top_level(found: Distribution) -> set[str]:
    parts = {path.parts[0] for path in found.files or ()}
    return {part for part in parts if part not in {"..", "__pycache__"} and not part.endswith(".pth")}


def installed(names: Iterable[str]) -> bool:
    """Whether all of these packages are installed here."""
    try:
        for name in names:
            distribution(name)
    except PackageNotFoundError:
        return False
    return True


def pins(target: str) -> dict[str, str]:
    """The version of each package that the constraints for `target` (cpu, cuda) name."""
    lines = (ROOT / f"constraints-{target}.txt").read_text(encoding="utf-8").split()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def imported(folder: Path) -> set[str]:
    """Top-level names of other projects that the Python files under `folder` import."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.rglob("*.py")]
    modules: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    top = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    return {name for name in top if not name.startswith("alignkit")}
