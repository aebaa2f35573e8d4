"""Files in the form of OpenAI's API."""

from typing import Literal, get_args

from pydantic import BaseModel

Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
"""Purposes that OpenAI accepts for an uploaded file."""
PURPOSES: tuple[str, ...] = get_args(Purpose)
FINE_TUNE = "fine-tune"


class FileObject(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


class FileDeleted(BaseModel):
    """The confirmation that a file was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True
