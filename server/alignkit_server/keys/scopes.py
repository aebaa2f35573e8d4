"""Scopes of keys: five of them, and the ones that each request needs."""

from typing import Literal

Scope = Literal["read", "train", "inference", "metrics", "admin"]
READ: Scope = "read"
TRAIN: Scope = "train"
INFERENCE: Scope = "inference"
METRICS: Scope = "metrics"
ADMIN: Scope = "admin"
SCOPES: dict[Scope, str] = {
    READ: "view and download files, jobs, models and evals",
    TRAIN: "upload and delete files, start and stop jobs, delete models, make and delete evals",
    INFERENCE: "send prompts to models, and list them",
    METRICS: "read the metrics of the whole service at /metrics",
    ADMIN: "manage all projects with their keys and limits",
}
PROJECT_SCOPES = (READ, TRAIN, INFERENCE)
"""Default scopes of a key: everything within its own project."""
READING = frozenset({"GET", "HEAD"})

_AREAS: dict[str, frozenset[Scope]] = {
    "organization": frozenset({ADMIN}),
    "chat": frozenset({INFERENCE}),
    "completions": frozenset({INFERENCE}),
    "responses": frozenset({INFERENCE}),
}
"""Part of the path after /v1/ -> the scope that all requests there need."""
_ALSO_READ_BY: dict[str, frozenset[Scope]] = {"models": frozenset({INFERENCE})}
_DOWNLOADS = ("/archive", "/content")
"""Ends of paths that give out data, whether at once or by a link."""
_ROWS = "/v1/fine_tuning/preview"
_OWN_KEY = "/v1/key"
"""Path where a key reads its own description; any scope suffices."""
_SAMPLES = "/v1/evals/{eval_id}/runs"
"""Path of runs of evals, which send prompts to models: changes there need train and inference."""
_GIVES_OUT = ("/permissions", "/webhook_endpoints")
"""Parts of a path that expose the project's data to others: changes there need read and train."""


def scopes_for(method: str, path: str) -> frozenset[Scope]:
    """The scopes of which a request needs one; outside of /v1 only admin, except for /metrics."""
    version, _, rest = path.removeprefix("/").partition("/")
    if version != "v1":
        return frozenset({ADMIN, METRICS} if path == "/metrics" else {ADMIN})
    area = rest.partition("/")[0]
    if area in _AREAS:
        return _AREAS[area]
    if path == _OWN_KEY:
        return frozenset(SCOPES)
    if path == _ROWS or path.endswith(_DOWNLOADS):
        return frozenset({READ})
    if method in READING:
        return frozenset({READ}) | _ALSO_READ_BY.get(area, frozenset())
    return frozenset({TRAIN})


def also_needed(method: str, path: str) -> frozenset[Scope]:
    """The scopes that a request needs in addition to one of `scopes_for`."""
    if method == "POST" and path == _SAMPLES:
        return frozenset({INFERENCE})
    gives_out = method not in READING and any(part in path for part in _GIVES_OUT)
    return frozenset({READ} if gives_out else ())
