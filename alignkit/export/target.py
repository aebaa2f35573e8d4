"""A folder that is written whole or not at all, beside the place it is for."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from alignkit.disk import is_full, staged_folder
from alignkit.errors import DiskFullError, ExportError


@contextmanager
def whole_or_nothing(target: Path, *, force: bool = False) -> Iterator[Path]:
    """A new folder beside `target`, renamed to it once the block has ended; removed if the block fails.

    Raises ExportError if `target` exists and `force` is not set, or if the disk is full. With `force`, what was there
    stays until the new folder is whole.
    """
    refuse_existing(target, force=force)
    staging = ExitStack()
    try:
        folder = staging.enter_context(staged_folder(target, replace=force))
    except OSError as error:
        raise ExportError(f"cannot write in {target.parent}: {error.strerror}") from error
    try:
        with staging:
            yield folder
    except Exception as error:
        if is_full(error):
            raise DiskFullError(
                f"the disk of {target.parent} is full: free some space, or choose another place with --out"
            ) from error
        raise


def refuse_existing(target: Path, *, force: bool) -> None:
    """Raise ExportError if something is at `target` that `force` does not allow to be replaced."""
    if force and target.exists() and not target.is_dir():
        raise ExportError(f"{target} is a file: expected a folder, or a place where nothing is")
    if target.exists() and not force:
        raise ExportError(
            f"{target} already exists: replace it with --force, or choose another place with --out"
        )
