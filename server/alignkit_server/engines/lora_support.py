"""Whether the installed vLLM serves LoRA adapters of an architecture, by its source: vLLM is never imported."""

import ast
import importlib.util
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

SUPPORT = "SupportsLoRA"
MODELS = Path("model_executor") / "models"

_PARSING = threading.Lock()
"""Python 3.11 counts the depth of syntax trees for all threads at once: two that parse together raise SystemError."""


def serves_adapters(config: Mapping[str, Any]) -> bool | None:
    """Whether vLLM serves adapters of a model with this config.json; None if that cannot be known.

    That is so if vLLM is not installed, or has no model of its own for the architecture.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        return None
    with _PARSING:
        return _supports(str(names[0]))


@cache
def _supports(architecture: str) -> bool | None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / MODELS
    try:
        module, name = _registry(folder)[architecture]
        return _inherits(folder, module, name)
    except (OSError, SyntaxError, KeyError):
        return None


@cache
def _registry(folder: Path) -> dict[str, tuple[str, str]]:
    """(module, class) of each architecture: the entries `"Name": ("module", "Class")` of vLLM's registry."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse((folder / "registry.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Tuple) and len(value.elts) == 2:
                    module, name = (getattr(part, "value", None) for part in value.elts)
                    if isinstance(module, str) and isinstance(name, str):
                        found.setdefault(str(key.value), (module, name))
    return found


def _inherits(folder: Path, module: str, name: str, seen: frozenset[tuple[str, str]] = frozenset()) -> bool:
    """Whether a class of vLLM's models has SupportsLoRA among its bases, through its modules."""
    tree = ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name: (str(node.module).rpartition(".")[2], alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    own = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in own:
        return False
    for base in own[name].bases:
        called = base.id if isinstance(base, ast.Name) else ""
        place = (module, called) if called in own else imported.get(called)
        if called == SUPPORT:
            return True
        if place is None or place in seen or not (folder / f"{place[0]}.py").is_file():
            continue
        if _inherits(folder, *place, seen=seen | {place}):
            return True
    return False
