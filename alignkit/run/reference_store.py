"""Log-probs under a reference, stored by content, so that later epochs, runs and sweeps need not compute them again.

An entry is named after everything that its values depend on, and sealed (`alignkit.sealed`). Two writers of an entry
write the same values.
"""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from alignkit import sealed
from alignkit.methods import D2O
from alignkit.recipe import Recipe

_MAGIC = b"alignkit-logps-1"


def has_reference(recipe: Recipe) -> bool:
    """Whether the recipe's method compares the policy with log-probs of a frozen reference."""
    return isinstance(recipe.method, D2O) or bool(getattr(recipe.method, "uses_reference", False))


def worth_storing(recipe: Recipe, rows: int) -> bool:
    """Whether a run reads each of its `rows` at least once; a shorter one would score rows in vain.

    D2O scores all rows before its first step in any case. With other methods, a run of all weights under a collapse
    guard keeps its reference, because the guard measures the answers with it.
    """
    if isinstance(recipe.method, D2O):
        return has_reference(recipe)
    if recipe.lora is None and recipe.collapse_guard is not None:
        return False
    training = recipe.training
    passes = (
        training.epochs
        if training.max_steps is None
        else training.max_steps * training.batch_size / max(rows, 1)
    )
    return has_reference(recipe) and passes >= 1


class ReferenceStore:
    """Entries of float32 values in `folder`, two levels deep. A store that cannot be written is only a slower one.

    `report` gets a sentence about what is computed, and about an entry that cannot be written.
    """

    def __init__(self, folder: Path, report: Callable[[str], None] = lambda _: None) -> None:
        self.folder = folder
        self.report = report
        self._failed = False

    def path(self, key: str) -> Path:
        """The file of the entry named `key`, a digest in hex."""
        return self.folder / key[:2] / f"{key}.f32"

    def read(self, key: str, count: int) -> list[float] | None:
        """The entry's `count` values; None if it is missing, damaged, or belongs to another key."""
        values = sealed.read(self.path(key), _MAGIC, key)
        if values is None or len(values) != 4 * count:
            return None
        return list(struct.unpack(f"<{count}f", values))

    def write(self, key: str, values: Sequence[float]) -> None:
        """Store float32 values under `key`."""
        try:
            sealed.write(self.path(key), _MAGIC, key, struct.pack(f"<{len(values)}f", *values))
        except OSError as error:
            if not self._failed:
                self.report(f"The reference's log-probs cannot be stored for later runs: {error.strerror}")
            self._failed = True

    def remove_unused(self, days: float = sealed.KEEP_DAYS) -> int:
        """Remove the entries that no run has used for `days`, and what a killed writer left. Returns their number."""
        return sealed.remove_unused(self.folder, days)
