"""/, /docs and /page/…: the page, the API's description for browsers, and their files. None of them needs a key.

The page is a client of the public API and holds its own key in the browser. The server keeps no state for it, so any
server of a database answers any part of it.
"""

import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from alignkit_server.page.paths import PREFIX

FILES = Path(__file__).parent / "static"

_FROM_HERE = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
)
PAGE_POLICY = _FROM_HERE + "style-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
"""Scripts and styles are this server's files alone: text that a model, a file or a name brings is never code."""
DOCS_POLICY = _FROM_HERE + "style-src 'self' 'unsafe-inline'"
"""Swagger UI sets styles inside its elements; it shows nothing but the API's description."""
_HEADERS = {
    "cache-control": "no-cache",  # asked for again each time, answered with 304 while nothing changed
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


def install(app: FastAPI) -> None:
    """Let `app` serve the page, the description's page and their files."""

    @app.get("/", include_in_schema=False)
    @app.head("/", include_in_schema=False)
    async def page() -> FileResponse:
        return _document("index.html", PAGE_POLICY)

    @app.get("/docs", include_in_schema=False)
    @app.head("/docs", include_in_schema=False)
    async def docs() -> FileResponse:
        return _document("docs.html", DOCS_POLICY)

    app.mount(PREFIX, PageFiles(directory=FILES), name="page")


class PageFiles(StaticFiles):
    """The page's files, with the headers of a document that trusts nothing."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """A file, or 304 where the browser has it already."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS | {"content-security-policy": "default-src 'none'; sandbox"})
        return response


def _document(name: str, policy: str) -> FileResponse:
    headers = _HEADERS | {"content-security-policy": policy}
    return FileResponse(FILES / name, media_type="text/html", headers=headers)
