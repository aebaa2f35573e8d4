"""Links that download one thing without a key's header, which a browser cannot send while it saves to the disk.

A link is sealed with the service's secret key, so every server of a home opens it and none stores it. It names the
key that asked for it: the download is refused if that key has been revoked, has expired, or lacks the scope by then.
"""

import json
from typing import Literal, NamedTuple

from pydantic import BaseModel, Field

from alignkit.errors import AlignkitError
from alignkit_server.clock import now
from alignkit_server.vault import Vault

LINK_SECONDS = 300
"""Seconds in which a download must begin."""
PARAMETER = "link"
_PURPOSE = "download"


class DownloadLink(BaseModel):
    """A link with which one thing can be downloaded without a key, by `GET` of the same path with `?link=`."""

    object: Literal["download_link"] = "download_link"
    link: str = Field(description="value of the query parameter `link`; treat it as a secret")
    expires_at: int = Field(description="until when the download must begin")
    bytes: int = Field(description="size of the download")


class Opened(NamedTuple):
    """What a valid link says."""

    key_id: str
    made: str | None
    """The prepared files, if the download had to be made."""


def link_to(vault: Vault, path: str, key_id: str, size: int, made: str | None = None) -> DownloadLink:
    """A link to what a GET of `path` returns to the key."""
    until = now() + LINK_SECONDS
    sealed = vault.seal(json.dumps([_PURPOSE, until, key_id, path, made]))
    return DownloadLink(link=sealed, expires_at=until, bytes=size)


def open_link(vault: Vault, link: str, path: str) -> Opened | None:
    """What the link says; None if it is not one of this service's, has expired, or is for another path."""
    try:
        purpose, until, key_id, named, made = json.loads(vault.open(link))
    except (AlignkitError, ValueError, TypeError):
        return None
    return Opened(key_id, made) if (purpose, named) == (_PURPOSE, path) and until > now() else None
