"""Renders pages of one file: no script, nothing from the network, and everything of a user's is text."""

import base64
import hashlib
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignkit.disk import put

FOLDER = Path(__file__).with_name("templates")
STYLE = (FOLDER / "style.css").read_text(encoding="utf-8")
_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; img-src data:; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"
)
"""Content policy that each page carries itself: its images and this style, nothing else."""


def render(template: str, **values: Any) -> str:
    """The page of a template in FOLDER; values are escaped."""
    return _ENVIRONMENT.get_template(template).render(**values)


def put_page(path: Path, page: str) -> None:
    """Write a page whole; a lone surrogate, which JSON can hold and UTF-8 cannot, becomes `?`."""
    put(path, page.encode("utf-8", "replace"))


def image(png: bytes) -> str:
    """The address of an image that holds the image itself."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def number(value: Any) -> str:
    """A number for people: whole ones with separators, others with four significant digits; "-" for None or NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def size(value: float | None) -> str:
    """Bytes for people."""
    if value is None:
        return "-"
    return f"{value / 2**30:.3g} GiB" if value >= 2**30 else f"{value / 2**20:.3g} MiB"


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def moment(seconds: int | None) -> str:
    """A time in Unix seconds, in UTC."""
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "size": size, "duration": duration, "moment": moment, "image": image}
    made.globals |= {"style": STYLE, "policy": POLICY}
    return made


_ENVIRONMENT = _environment()
