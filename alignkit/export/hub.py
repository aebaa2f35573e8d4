"""Uploads an exported model to the Hugging Face hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.errors import ExportError

if TYPE_CHECKING:  # saves huggingface_hub at start-up
    from huggingface_hub import HfApi


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the hub: an address, and who may see it."""

    id: str
    private: bool = True


def prepare(repository: Repository, *, force: bool = False) -> None:
    """Make a repository if it is missing. Call it before a long export: it finds out what would refuse the push.

    Raises ExportError as `push` does.
    """
    with _refusals(repository) as api:
        _open(api, repository, force=force)


def push(folder: Path, repository: Repository, *, force: bool = False) -> str:
    """Upload a folder's files in one commit and return the repository's address.

    Uses the hub's token of this machine (`hf auth login`, or HF_TOKEN). Raises ExportError if the repository already
    has files and `force` is not set, or if the hub refuses or does not answer.
    """
    with _refusals(repository) as api:
        address = _open(api, repository, force=force)
        api.upload_folder(
            repo_id=repository.id,
            folder_path=folder,
            commit_message="Upload a model trained with alignkit",
            delete_patterns=["*"] if force else None,
        )
    return address


def _open(api: "HfApi", repository: Repository, *, force: bool) -> str:
    """The address of a repository that is there and may be filled."""
    address = api.create_repo(repository.id, private=repository.private, exist_ok=True)
    files = [name for name in api.list_repo_files(repository.id) if name != ".gitattributes"]
    if files and not force:
        raise ExportError(
            f"{repository.id} already has {len(files)} files, such as {files[0]}: replace them with --force, or "
            "choose another repository"
        )
    return str(address)


@contextmanager
def _refusals(repository: Repository) -> Iterator["HfApi"]:
    """The hub's client, whose failures are raised as ExportError."""
    from huggingface_hub import HfApi  # saves huggingface_hub at start-up
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.errors import LocalTokenNotFoundError as NoTokenError

    try:
        yield HfApi()
    except (HFValidationError, NoTokenError) as error:
        raise ExportError(f"cannot push to {repository.id}: {error}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        raise ExportError(f"the hub refused {repository.id} with status {status}: {_why(status)}") from error
    except OSError as error:
        raise ExportError(f"the hub does not answer ({type(error).__name__}): try again later") from error


_WHY = {
    401: "log in with `hf auth login`, or set HF_TOKEN",
    403: "the token may not write there; make one with write access",
    404: "there is no such user or organisation, or the token may not see it",
    429: "too many requests; try again later",
}


def _why(status: int | None) -> str:
    return _WHY.get(status or 0, "try again later")
