"""The values that a run chose for `auto`, in its folder (settled.json), so that a resumed run has the same ones.

Also the smaller micro-batch of a run that ran out of memory.
"""

import json
from typing import Any

from alignkit.recipe import Recipe
from alignkit.run.folder import RunFolder, write_json

AUTO = "auto"
SETTLED = {
    "model": ("dtype", "attn_implementation"),
    "training": (
        "micro_batch_size",
        "gradient_checkpointing",
        "eval_batch_size",
        "mixed_precision",
        "reference_store",
        "eval_steps",
    ),
    "collapse_guard": ("max_new_tokens",),
}
"""Section -> its options that a run settles."""


def keep(recipe: Recipe, folder: RunFolder, **more: Any) -> None:
    """Write the recipe and its chosen values into the run's folder, where a resumed run finds them."""
    values = {
        section: {name: getattr(getattr(recipe, section), name) for name in names}
        for section, names in SETTLED.items()
        if getattr(recipe, section) is not None
    }
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.settled, {**read_kept(folder), **values, **more})
    folder.write_recipe(recipe)


def halve(recipe: Recipe, folder: RunFolder, *, processes: int, start: str = "") -> tuple[int, int] | None:
    """Store a smaller micro-batch for the next start. Returns (old, new), or None if it cannot be smaller.

    Evaluations get no more rows in a forward, because they may be what ran out of memory.

    This happens once per run, so that a run which does not fit still fails; asked again about the same `start`, it
    gives the same answer. A micro-batch that is part of the method is not changed.
    """
    kept = read_kept(folder)
    if start and kept.get("halved_after") == start:
        old, new = kept["halved"]
        return old, new
    recipe = with_kept(recipe, kept)
    share = recipe.training.batch_size // processes
    given = recipe.training.micro_batch_size
    micro = given if isinstance(given, int) else share
    if kept.get("out_of_memory") or micro < 2 or recipe.micro_batch_matters:
        return None
    half = max(size for size in range(1, micro // 2 + 1) if share % size == 0)
    less = {"micro_batch_size": half}
    if isinstance(rows := recipe.training.eval_batch_size, int):
        less["eval_batch_size"] = min(rows, half)
    keep(
        recipe.model_copy(update={"training": recipe.training.model_copy(update=less)}),
        folder,
        out_of_memory=less,
        halved=[micro, half],
        halved_after=start,
    )
    return micro, half


def with_kept(recipe: Recipe, kept: dict[str, Any]) -> Recipe:
    """Replace each `auto` by the stored value, and the micro-batch by the halved one if there is one."""
    updates = {}
    for section, names in SETTLED.items():
        own, found = getattr(recipe, section), kept.get(section, {})
        if own is None:
            continue
        values = {name: found[name] for name in names if name in found and getattr(own, name) == AUTO}
        if section == "training":
            values |= kept.get("out_of_memory") or {}
        updates[section] = own.model_copy(update=values)
    return recipe.model_copy(update=updates)


def read_kept(folder: RunFolder) -> dict[str, Any]:
    """The stored values; empty before there are any."""
    try:
        found: dict[str, Any] = json.loads(folder.settled.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found
