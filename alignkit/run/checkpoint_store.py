"""Copies of complete checkpoints in any storage that pyarrow supports: s3://, gs://, file://, or a path.

A copy is complete when its manifest exists, which is written last. The URL can name an S3-compatible server:
s3://bucket/prefix?endpoint_override=http://host:9000.
"""

import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

from pyarrow import fs

from alignkit.errors import AlignkitError
from alignkit.run.checkpoints import ASIDE, MANIFEST, damage, newest_first, read_manifest


def inside(url: str, name: str) -> str:
    """The URL of the entry `name` in the folder at `url`."""
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


class CheckpointStore:
    """The checkpoints of one run at a URL."""

    def __init__(self, url: str) -> None:
        """Open the storage at `url`. Raises AlignkitError if the URL is invalid."""
        try:
            given = url if "://" in url else str(Path(url).expanduser().resolve())
            self._files, self._root = fs.FileSystem.from_uri(given)
        except (ValueError, OSError) as error:
            raise AlignkitError(
                f"storage: expected a URL such as s3://bucket/folder, found {_without_secret(url)}"
            ) from error

    def steps(self) -> list[str]:
        """Names of the complete checkpoints, newest first."""
        entries = self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        names = [entry.base_name for entry in entries if entry.base_name.startswith("checkpoint-")]
        manifests = self._files.get_file_info([f"{self._root}/{name}/{MANIFEST}" for name in names])
        whole = [name for name, found in zip(names, manifests, strict=True) if found.type == fs.FileType.File]
        return sorted(whole, key=_step, reverse=True)

    def sync(self, checkpoints: Path) -> list[str]:
        """Copy complete checkpoints of the folder that have no copy, and delete copies of those no longer there.

        Returns the names of the copied checkpoints. A checkpoint that is deleted meanwhile is not copied.
        """
        here = {path.name: path for path in newest_first(checkpoints) if (path / MANIFEST).is_file()}
        there = set(self.steps())
        copied = [name for name in sorted(here.keys() - there, key=_step) if self._push(here[name])]
        if here:
            for name in there - here.keys():
                self._files.delete_dir(f"{self._root}/{name}")
        return copied

    def fetch(self, checkpoints: Path) -> str | None:
        """Copy the newest complete checkpoint into the folder if that has none as new; returns its name or None.

        The checkpoint of the best step so far, which may become the result, comes with it.
        """
        local = next((_step(path.name) for path in newest_first(checkpoints) if damage(path) is None), -1)
        for name in self.steps():
            if _step(name) <= local:
                return None
            if self._pull(name, checkpoints):
                best = f"checkpoint-{read_manifest(checkpoints / name).get('best_step')}"
                if damage(checkpoints / best) is not None and best in self.steps():
                    self._pull(best, checkpoints)
                return name
        return None

    def _pull(self, name: str, checkpoints: Path) -> bool:
        """Copy a checkpoint into the folder; False if the copy is damaged, and the folder is unchanged."""
        aside = checkpoints / ASIDE / name
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        fs.copy_files(f"{self._root}/{name}", str(aside), self._files, fs.LocalFileSystem())
        if damage(aside) is not None:
            return False
        shutil.rmtree(checkpoints / name, ignore_errors=True)
        aside.rename(checkpoints / name)
        return True

    def _push(self, checkpoint: Path) -> bool:
        local, target = fs.LocalFileSystem(), f"{self._root}/{checkpoint.name}"
        try:
            for name in [*read_manifest(checkpoint)["files"], MANIFEST]:
                self._files.create_dir(f"{target}/{Path(name).parent}" if "/" in name else target)
                fs.copy_files(str(checkpoint / name), f"{target}/{name}", local, self._files)
        except FileNotFoundError:
            return False
        return True


def _without_secret(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url)


def _step(name: str) -> int:
    return int(name.removeprefix("checkpoint-"))
