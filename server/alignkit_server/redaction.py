"""Keys out of text: one may come in a path, in a field of a request, or in the words of an exception."""

import re

_TOKEN = re.compile(r"sk-[A-Za-z0-9_-]{20,}")


def without_keys(text: str) -> str:
    """`text` with whatever looks like a key cut to its beginning."""
    return _TOKEN.sub("sk-***", text)
