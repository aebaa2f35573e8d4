"""Checkpoints that are there whole or not at all.

One is written aside, its files are synced and listed with sizes and digests in manifest.json, and only then does the
folder get its name. What does not match its manifest is damaged, and a run goes on from the one before it.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from alignkit.disk import digest, sync

FORMAT = 2
"""Of the checkpoints that this version writes and reads; in the manifest of each."""
MANIFEST = "manifest.json"
ASIDE = ".writing"
"""Folder beside the checkpoints in which one is written."""


def seal(written: Path, target: Path, origin: Mapping[str, Any]) -> None:
    """Sync the checkpoint in `written`, add its manifest and give it its name, in the place of what has that now.

    `origin`: what the manifest says of the run beside the files (alignkit.run.resume_guard).
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
    """What is wrong with a checkpoint, as a sentence's end; None where every file is what its manifest says.

    What another version of alignkit wrote is not ours to call damaged: the run that would go on from it refuses it.
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
    """The manifest; raises OSError or ValueError where there is none that can be read."""
    value: dict[str, Any] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    return value


def newest_first(folder: Path) -> Iterable[Path]:
    """The checkpoints in `folder`, whole or not."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), reverse=True)


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
    return None if digest(file) == entry["sha256"] else "has other contents than were written"
