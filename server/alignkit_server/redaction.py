"""Removes API keys from text: one may appear in a path, a request field or an exception's message."""

import re

_TOKEN = re.compile(r"sk-[A-Za-z0-9_-]{20,}")


def without_keys(text: str) -> str:
    """`text` with everything that looks like a key shortened to its prefix."""
    return _TOKEN.sub("sk-***", text)
