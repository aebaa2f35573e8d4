"""Uploads in parts, in the form of OpenAI's API."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignkit_server.fields import Name
from alignkit_server.files.schemas import FileObject, Purpose

MAX_PARTS = 10_000


class ExpiresAfter(BaseModel):
    """The lifetime of the file after the upload is complete."""

    model_config = ConfigDict(strict=True, extra="forbid")

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2592000)]


class UploadRequest(BaseModel):
    """A request to open an upload."""

    model_config = ConfigDict(strict=True, extra="forbid")

    bytes: Annotated[int, Field(ge=0, description="size of the whole file in bytes")]
    filename: Annotated[Name, Field(min_length=1)]
    mime_type: Annotated[
        str, Field(description="accepted but not checked; a file's content is checked when it is used")
    ]
    purpose: Purpose
    expires_after: ExpiresAfter | None = None


class CompleteRequest(BaseModel):
    """The parts that make up the file, in order."""

    model_config = ConfigDict(strict=True, extra="forbid")

    part_ids: Annotated[list[Name], Field(max_length=MAX_PARTS)]
    md5: Annotated[
        str | None, Field(pattern=r"^[0-9a-fA-F]{32}$", description="MD5 of the whole file, in hexadecimal")
    ] = None


class UploadObject(BaseModel):
    """An upload; `file` is set when it is complete."""

    id: str
    object: Literal["upload"] = "upload"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None


class PartObject(BaseModel):
    """A part of an upload."""

    id: str
    object: Literal["upload.part"] = "upload.part"
    created_at: int
    upload_id: str
