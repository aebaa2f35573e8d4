"""Answers that are a report: one HTML page that runs no script and loads nothing."""

from typing import Any

from fastapi import Response

HTML = "text/html"
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
"""Content policy of a report, beside the stricter one in the page itself: no scripts, and nothing is loaded."""
REPORT_RESPONSE: dict[int | str, dict[str, Any]] = {200: {"content": {HTML: {"schema": {"type": "string"}}}}}


def report_response(page: bytes | str, name: str) -> Response:
    """Answer with the report of the object with this id."""
    headers = {
        "content-disposition": f'inline; filename="{name}.html"',
        "content-security-policy": REPORT_POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return Response(page, media_type=HTML, headers=headers)
