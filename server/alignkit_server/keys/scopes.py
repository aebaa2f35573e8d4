"""What a key may do: five scopes, and which of them each request needs."""

from typing import Literal

Scope = Literal["read", "train", "inference", "metrics", "admin"]
READ: Scope = "read"
TRAIN: Scope = "train"
INFERENCE: Scope = "inference"
METRICS: Scope = "metrics"
ADMIN: Scope = "admin"
SCOPES: dict[Scope, str] = {
    READ: "look at files, jobs and models, and download them",
    TRAIN: "upload and delete files, start and end jobs, delete models",
    INFERENCE: "ask models, and list them",
    METRICS: "read what the whole service measures, at /metrics",
    ADMIN: "make projects, keys and limits, of every project",
}
PROJECT_SCOPES = (READ, TRAIN, INFERENCE)
"""What a key may do unless told otherwise: everything within its own project."""
READING = frozenset({"GET", "HEAD"})

_AREAS: dict[str, frozenset[Scope]] = {
    "organization": frozenset({ADMIN}),
    "chat": frozenset({INFERENCE}),
    "completions": frozenset({INFERENCE}),
}
"""Parts of the API whose every request needs the same scope, by what follows /v1/."""
_ALSO_READ_BY: dict[str, frozenset[Scope]] = {"models": frozenset({INFERENCE})}
_WEIGHTS = "/archive"
_ROWS = "/v1/fine_tuning/preview"
_GIVES_OUT = ("/permissions", "/webhook_endpoints")
"""What lets others see something of the project: only who may see it and change it gives it out."""


def scopes_for(method: str, path: str) -> frozenset[Scope]:
    """The scopes of which a request needs one; outside of /v1 only an admin's will do, but for /metrics."""
    version, _, rest = path.removeprefix("/").partition("/")
    if version != "v1":
        return frozenset({ADMIN, METRICS} if path == "/metrics" else {ADMIN})
    area = rest.partition("/")[0]
    if area in _AREAS:
        return _AREAS[area]
    if path == _ROWS or path.endswith(_WEIGHTS):
        return frozenset({READ})
    if method in READING:
        return frozenset({READ}) | _ALSO_READ_BY.get(area, frozenset())
    return frozenset({TRAIN})


def also_needed(method: str, path: str) -> frozenset[Scope]:
    """The scopes that a request needs beside one of `scopes_for`."""
    gives_out = method not in READING and any(part in path for part in _GIVES_OUT)
    return frozenset({READ} if gives_out else ())
