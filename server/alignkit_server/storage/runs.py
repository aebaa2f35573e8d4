"""Measures and removes the folders of jobs and of the models they made.

A published model has a copy of its own, so a finished job's folder (checkpoints with their optimizer states, samples,
logs) can be removed at any time.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog
from sqlalchemy import select, update

from alignkit import sealed
from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.engines.weights import file_name
from alignkit_server.settings import Settings
from alignkit_server.tables import FineTunedModel, Job, Project

log = structlog.get_logger()


class RunStorage:
    """Measures and removes the folders of jobs. Thread-safe; every call may take as long as the disk does."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._folder = settings.jobs_dir
        self._exports = settings.exports_dir
        self._stores = (settings.references_dir, settings.tokens_dir)
        self._weights = settings.weights_dir
        self._caches = settings.engine_caches_dir
        self._database = database

    def measure(self, job_id: str) -> int:
        """Count the bytes of the job's folder, models, their engines and downloads in the making, and store them."""
        with self._database.reading() as session:
            paths = session.scalars(select(FineTunedModel.path).where(FineTunedModel.job_id == job_id)).all()
        exports = self._exports.glob(f"{job_id}.*")
        names = [file_name(Path(path).name) for path in paths]
        of_engines = [folder / name for folder in (self._weights, self._caches) for name in names]
        size = bytes_on_disk([self._folder / job_id, *map(Path, paths), *of_engines, *exports])
        self._store(job_id, disk_bytes=size)
        return size

    def measure_stores(self) -> None:
        """Remove log-probs and token ids that no job used for long; store the size of the rest with each project."""
        with self._database.reading() as session:
            known = dict(session.execute(select(Project.id, Project.reference_bytes)).tuples().all())
        for project_id, before in known.items():
            folders = [store / project_id for store in self._stores]
            for folder in folders:
                sealed.remove_unused(folder)
            size = bytes_on_disk(folders)
            if size != before:
                with self._database.writing() as session:
                    mine = update(Project).where(Project.id == project_id)
                    session.execute(mine.values(reference_bytes=size))

    def drop_model(self, job_id: str, step: int | None) -> None:
        """Remove a deleted model's files from its job's folder; with the job's last model, the whole folder."""
        with self._database.reading() as session:
            others = session.scalar(
                select(FineTunedModel.seq).where(FineTunedModel.job_id == job_id).limit(1)
            )
        if others is None:
            self.prune(job_id)
            return
        parts = ("adapter", "model") if step is None else (f"checkpoints/checkpoint-{step}",)
        for part in parts:
            shutil.rmtree(self._folder / job_id / part, ignore_errors=True)
        self.measure(job_id)

    def prune(self, job_id: str) -> None:
        """Remove the folder of a finished job. Its published models, events and metrics stay."""
        shutil.rmtree(self._folder / job_id, ignore_errors=True)
        log.info("removed a job's folder", job_id=job_id)
        self._store(job_id, pruned_at=now())
        self.measure(job_id)

    def _store(self, job_id: str, **values: int) -> None:
        with self._database.writing() as session:
            session.execute(update(Job).where(Job.id == job_id).values(**values))


def bytes_on_disk(folders: Iterable[Path]) -> int:
    """Bytes of all files in `folders`; a file with several links counts once."""
    sizes = {(status.st_dev, status.st_ino): status.st_size for path in folders for status in _files(path)}
    return sum(sizes.values())


def _files(folder: Path) -> Iterator[os.stat_result]:
    """Every file in `folder`, without following links; skips files that vanish meanwhile."""
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                yield Path(root, name).lstat()
            except FileNotFoundError:
                continue
