"""Checkpoints that are written atomically and verified.

A checkpoint is written aside; its files are synced and listed with sizes and digests in manifest.json; only then is
it renamed into place. One that does not match its manifest is damaged, and a run resumes from the previous one.
"""

import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from alignkit.disk import digest, sync

FORMAT = 2
"""Format version of checkpoints written and read by this version; recorded in each manifest."""
MANIFEST = "manifest.json"
ASIDE = ".writing"
"""Name of the folder next to the checkpoints in which new ones are written."""


def seal(written: Path, target: Path, origin: Mapping[str, Any]) -> None:
    """Sync the checkpoint in `written`, add its manifest, and rename it to `target`, replacing what is there.

    `origin` is what the manifest records about the run (alignkit.run.resume_guard).
    """
    files = _files(written)
    with ThreadPoolExecutor() as pool:
        entries = dict(
            zip(map(str, files), pool.map(lambda file: _entry(written / file), files), strict=True)
        )
    manifest = written / MANIFEST
    manifest.write_text(json.dumps({**origin, "files": entries}, indent=1), encoding="utf-8")
    sync(manifest)
    for folder in [*(path for path in written.rglob("*") if path.is_dir()), written]:
        sync(folder)
    replaced = written.with_name(f"{target.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    written.rename(target)
    sync(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def damage(checkpoint: Path) -> str | None:
    """The damage of a checkpoint, as the end of a sentence; None if every file matches the manifest.

    A checkpoint of another version of alignkit does not count as damaged: a run that would resume from it refuses it.
    """
    try:
        manifest = read_manifest(checkpoint)
        if manifest.get("format", FORMAT) != FORMAT:
            return None
        files: dict[str, dict[str, Any]] = manifest["files"]
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda name: _difference(checkpoint / name, files[name]), files)
            return next((f"{name} {wrong}" for name, wrong in zip(files, found, strict=True) if wrong), None)
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its {MANIFEST} cannot be read: {error}"


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest. Raises OSError or ValueError if it is missing or unreadable."""
    value: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    return value


def newest_first(folder: Path) -> Iterable[Path]:
    """The checkpoints in `folder`, newest first, complete or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


def rotate(folder: Path, limit: int | None, kept: Collection[str]) -> None:
    """Delete the oldest checkpoints in `folder` until `limit` are left, except those named in `kept`.

    `limit` None deletes none. The kept ones count towards the limit, but are never deleted.
    """
    found = list(newest_first(folder))
    surplus = 0 if limit is None else len(found) - limit
    for path in reversed([path for path in found if path.name not in kept]):
        if surplus <= 0:
            return
        shutil.rmtree(path, ignore_errors=True)
        surplus -= 1


def _files(folder: Path) -> list[Path]:
    return sorted(
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST
    )


def _entry(file: Path) -> dict[str, Any]:
    sync(file)
    return {"bytes": file.stat().st_size, "sha256": digest(file)}


def _difference(file: Path, entry: dict[str, Any]) -> str | None:
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    if size != entry["bytes"]:
        return f"has {size:,} bytes, expected {entry['bytes']:,}"
    return None if digest(file) == entry["sha256"] else "has other contents than when written"
