"""/, /docs and /page/…: the web page, Swagger UI, and their files. None of them needs a key.

The page is a client of the public API and keeps its key in the browser. The server keeps no state for it, so any
server of a database can answer each of its requests.
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
"""Content policy: only this server's files are scripts and styles, so text of models, files or names never runs."""
DOCS_POLICY = _FROM_HERE + "style-src 'self' 'unsafe-inline'"
"""Content policy of Swagger UI, which sets inline styles; it shows only the OpenAPI document."""
_HEADERS = {
    "cache-control": "no-cache",  # revalidated each time; 304 while unchanged
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


def install(app: FastAPI) -> None:
    """Make `app` serve the page, Swagger UI and their files."""

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
    """The page's static files, with strict security headers."""

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Return a file, or 304 if the browser already has it."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS | {"content-security-policy": "default-src 'none'; sandbox"})
        return response


def _document(name: str, policy: str) -> FileResponse:
    headers = _HEADERS | {"content-security-policy": policy}
    return FileResponse(FILES / name, media_type="text/html", headers=headers)
