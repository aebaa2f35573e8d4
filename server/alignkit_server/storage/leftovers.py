"""Removes expired files and uploads, in batches: short transactions do not hold up others."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import structlog
from sqlalchemy import ColumnElement, and_, delete, exists, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from alignkit_server.clock import now
from alignkit_server.database import Database, after_commit
from alignkit_server.in_use import uses_file
from alignkit_server.job_status import UNFINISHED
from alignkit_server.keys.links import LINK_SECONDS
from alignkit_server.settings import Settings
from alignkit_server.tables import File, Job, Upload, UploadPart

INCOMING_SECONDS = 3600.0
"""Seconds without a write after which an upload that arrives counts as abandoned, by a server that was killed."""
BATCH = 200
"""Rows per transaction."""
ORPHAN_SECONDS = 24 * 3600.0
"""Age in seconds at which a file without a row belongs to no request: a killed server left it behind."""
KEPT = ".kept"
"""End of the name of an export that waits for a download by link."""
KEPT_SECONDS = LINK_SECONDS + 60.0

log = structlog.get_logger()


def remove_expired(database: Database, settings: Settings) -> None:
    """Remove every project's expired files and uploads, files without a row, and what no request sends any more.

    The token ids of files without a row go with them.
    """
    for work in (_files, _uploads):
        while work(database, settings) == BATCH:
            pass
    _remove_orphans(database, settings.files_dir, File.id)
    for folder in settings.tokens_dir.glob("*"):
        _remove_orphans(database, folder, File.id, seconds=0)
    _remove_orphans(database, settings.uploads_dir, Upload.id, Upload.status == "pending")
    for path in settings.incoming_dir.glob("*/*"):
        if _changed(path) < time.time() - INCOMING_SECONDS:
            _remove(path)


def remove_exports(folder: Path) -> set[str]:
    """Remove the exports that no download can need any more. Returns the ids of the jobs that they counted for."""
    gone = set()
    for path in folder.glob("*"):
        most = KEPT_SECONDS if path.name.endswith(KEPT) else ORPHAN_SECONDS
        if _changed(path) < time.time() - most:
            _remove(path)
            gone.add(path.name.partition(".")[0])
    return gone


def purge_files(session: Session, folder: Path, *which: ColumnElement[bool]) -> int:
    """Remove up to BATCH expired files that meet `which` and no unfinished job uses. Returns their number."""
    used = exists().where(
        Job.project_id == File.project_id,
        Job.status.in_(UNFINISHED),
        uses_file(File.id),
    )
    gone = select(File.seq).where(File.expires_at <= now(), ~used, *which).limit(BATCH)
    ids = session.scalars(delete(File).where(File.seq.in_(gone)).returning(File.id)).all()
    if ids:
        log.info("files expired", count=len(ids))
    for file_id in ids:
        after_commit(session, _remover(folder / file_id))
    return len(ids)


def expire_uploads(session: Session, folder: Path, *which: ColumnElement[bool]) -> int:
    """Close up to BATCH expired uploads that meet `which`, and remove their parts. Returns their number."""
    over = (
        select(Upload.seq).where(Upload.status == "pending", Upload.expires_at <= now(), *which).limit(BATCH)
    )
    change = update(Upload).where(Upload.seq.in_(over)).values(status="expired").returning(Upload.id)
    ids = session.scalars(change).all()
    drop_parts(session, folder, *ids)
    return len(ids)


def drop_parts(session: Session, folder: Path, *upload_ids: str) -> None:
    """Remove the parts of uploads: their rows now, their bytes after the commit."""
    if upload_ids:
        session.execute(delete(UploadPart).where(UploadPart.upload_id.in_(upload_ids)))
    for upload_id in upload_ids:
        after_commit(session, _remover(folder / upload_id))


def _files(database: Database, settings: Settings) -> int:
    with database.reading() as session:
        if session.scalar(select(File.seq).where(File.expires_at <= now()).limit(1)) is None:
            return 0
    with database.writing() as session:
        return purge_files(session, settings.files_dir)


def _uploads(database: Database, settings: Settings) -> int:
    over = and_(Upload.status == "pending", Upload.expires_at <= now())
    with database.reading() as session:
        if session.scalar(select(Upload.seq).where(over).limit(1)) is None:
            return 0
    with database.writing() as session:
        return expire_uploads(session, settings.uploads_dir)


def _remove_orphans(
    database: Database,
    folder: Path,
    id_: InstrumentedAttribute[str],
    *which: ColumnElement[bool],
    seconds: float = ORPHAN_SECONDS,
) -> None:
    """Remove what is at least `seconds` old in `folder` and named after an id without a row that meets `which`."""
    before = time.time() - seconds
    old = [path for path in folder.iterdir() if _changed(path) < before]
    for start in range(0, len(old), BATCH):
        batch = old[start : start + BATCH]
        with database.reading() as session:
            known = set(session.scalars(select(id_).where(id_.in_([path.name for path in batch]), *which)))
        for path in batch:
            if path.name not in known:
                _remove(path)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _remover(path: Path) -> Callable[[], None]:
    return lambda: _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
