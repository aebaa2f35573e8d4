"""Files as the API gives them: OpenAI's."""

from typing import Literal, get_args

from pydantic import BaseModel

Purpose = Literal["assistants", "batch", "evals", "fine-tune", "user_data", "vision"]
"""What OpenAI lets a file be uploaded for."""
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
    """Says that a file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True
