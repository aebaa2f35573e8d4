"""Streams a multipart upload directly into a file of the service's own folder, within a size limit.

Starlette's form parser would spool the whole body elsewhere before a route could check its size.
"""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from alignkit_server.errors import ApiError, disk_full, shorten
from alignkit_server.files.incoming import Space, Temporary
from alignkit_server.limits.turns import end_turn
from alignkit_server.outages import is_full

FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
FIELD_BYTES = 1024
OVERHEAD_BYTES = 64 * 2**10
"""Maximum size of a body's content besides the file."""
DRAIN_BYTES = 64 * 2**20
"""Bytes of a refused body that are still read, so that the client gets to read the answer."""
WRITE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Upload:
    """A received file, synced to disk, and the form's other fields."""

    path: Path
    filename: str
    size: int
    fields: dict[str, str]


class _Form:
    """The state of the parser; `pending` is file content that is not yet written."""

    def __init__(self, max_bytes: int, file_field: str, known_fields: Sequence[str]) -> None:
        self.file_field = file_field
        self._known_fields = known_fields
        self.fields: dict[str, bytearray] = {}
        self.filename: str | None = None
        self.size = 0
        self.pending = bytearray()
        self.ended = False
        self._max_bytes = max_bytes
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._part = ""

    def on_part_begin(self) -> None:
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def on_header_end(self) -> None:
        name, value = (bytes(part) for part in self._header)
        if name.lower() == b"content-disposition":
            self._disposition = value
        self._header = (bytearray(), bytearray())

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part = options.get(b"name", b"").decode("utf-8", "replace")
        if not self._part:
            raise ApiError(400, "Expected a name for every part of the form, found a part without one.")
        if self._part in self.fields:
            raise ApiError(400, f"Expected {self._part} once, found it again.", param=self._part)
        if self._part == self.file_field:
            if self.filename is not None:
                raise ApiError(400, "Expected one file, found several.", param=self.file_field)
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace")
        elif self._part in self._known_fields:
            self.fields[self._part] = bytearray()
        else:
            raise ApiError(
                400, f"Unknown parameter: {shorten(self._part)}.", param=self._part, code="unknown_parameter"
            )

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._part == self.file_field:
            self.size += end - start
            if self.size > self._max_bytes:
                raise too_large(self._max_bytes, self.file_field)
            self.pending.extend(data[start:end])
            return
        field = self.fields[self._part]
        field.extend(data[start:end])
        if len(field) > FIELD_BYTES:
            raise ApiError(
                400, f"{self._part}: expected at most {FIELD_BYTES} bytes, found more.", param=self._part
            )

    def on_end(self) -> None:
        self.ended = True


@asynccontextmanager
async def receive(
    request: Request,
    space: Space,
    max_bytes: int,
    *,
    file_field: str = "file",
    fields: Sequence[str] = FIELDS,
) -> AsyncIterator[Upload]:
    """Receive the request's upload in a temporary file of `space`, removed at the end unless it was renamed.

    The form must hold one file under the name `file_field`; other fields are allowed only if listed in `fields`.
    Raises 429 once the file cannot fit into the quota: before its first byte, if the request declares its length.
    """
    boundary = _boundary(request)
    end_turn()
    body = request.stream()
    file = await to_thread.run_sync(space.open)
    try:
        try:
            if _declared_length(request) > max_bytes + OVERHEAD_BYTES:
                raise too_large(max_bytes, file_field)
            form, target = _Form(max_bytes, file_field, fields), _Target(space, file)
            await target.make_room(_declared_length(request) - OVERHEAD_BYTES)
            await _parse(body, boundary, target, form)
            await to_thread.run_sync(target.finish, form.size)
        except ApiError:
            await _drain(body)
            raise
        finally:
            os.close(file.descriptor)
        found = {key: bytes(value).decode("utf-8", "replace") for key, value in form.fields.items()}
        yield Upload(file.path, form.filename or "", form.size, found)
    finally:
        await to_thread.run_sync(lambda: file.path.unlink(missing_ok=True))


class _Target:
    """The file that is written; its space is taken in advance, but for OVERHEAD_BYTES, which settle at the end."""

    def __init__(self, space: Space, file: Temporary) -> None:
        self._space = space
        self._file = file
        self._taken = 0

    async def make_room(self, size: int) -> None:
        """Take the space of `size` bytes, unless it is taken. Raises 429 if the project's quota has no room."""
        if size > self._taken:
            await to_thread.run_sync(self._space.take, self._file, size)
            self._taken = size

    async def write(self, form: _Form) -> None:
        """Write what is pending."""
        await self.make_room(form.size - OVERHEAD_BYTES)
        data, form.pending = form.pending, bytearray()
        await to_thread.run_sync(write_all, self._file.descriptor, data)

    def finish(self, size: int) -> None:
        """Give back what was taken beyond `size`, and sync. Raises 400 if the file was given up meanwhile."""
        os.ftruncate(self._file.descriptor, size)
        os.fsync(self._file.descriptor)
        if not self._file.path.exists():
            raise ApiError(400, "The upload came too slowly: start it again.", code="upload_abandoned")


async def _parse(body: AsyncIterator[bytes], boundary: bytes, target: _Target, form: _Form) -> None:
    names = (
        "part_begin",
        "header_field",
        "header_value",
        "header_end",
        "headers_finished",
        "part_data",
        "end",
    )
    callbacks: Any = {f"on_{name}": getattr(form, f"on_{name}") for name in names}
    try:
        parser = MultipartParser(boundary, callbacks)  # raises if the boundary is too long
        async for chunk in body:
            parser.write(chunk)
            if len(form.pending) >= WRITE_BYTES:
                await target.write(form)
        parser.finalize()
    except FormParserError as error:
        raise ApiError(400, f"The body is not valid multipart/form-data: {error}.") from error
    except ClientDisconnect as error:
        raise ApiError(400, "The connection ended before the upload did.") from error
    await target.write(form)
    if not form.ended:
        raise ApiError(400, "The body ends before its multipart/form-data does.")
    if form.filename is None:
        raise missing(form.file_field)


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """Write all of `data`. Raises 507 if the disk is full."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        if is_full(error):
            raise disk_full() from error
        raise


async def _drain(body: AsyncIterator[bytes]) -> None:
    """Read some more of a refused body: closing a connection with unread data can lose the answer."""
    left = DRAIN_BYTES
    try:
        async for chunk in body:
            left -= len(chunk)
            if left < 0:
                return
    except ClientDisconnect:
        return


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        found = shorten(request.headers.get("content-type"))
        raise ApiError(400, f"Expected a body of type multipart/form-data with a boundary, found {found}.")
    return options[b"boundary"]


def _declared_length(request: Request) -> int:
    length = request.headers.get("content-length", "")
    return int(length) if length.isdecimal() else 0


def too_large(max_bytes: int, param: str = "file") -> ApiError:
    """The 413 of a file above the limit."""
    return ApiError(
        413,
        f"{param}: larger than the limit of {max_bytes} bytes.",
        param=param,
        code="file_too_large",
    )


def missing(param: str) -> ApiError:
    """The 400 of a missing field."""
    return ApiError(
        400, f"Missing required parameter: {param!r}.", param=param, code="missing_required_parameter"
    )
