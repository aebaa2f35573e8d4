"""The page's paths, which a browser fetches before anybody has signed in."""

PREFIX = "/page"
_DOCUMENTS = frozenset({"/", "/docs"})


def is_open(path: str) -> bool:
    """Whether `path` is the page, the description for browsers, or a file of theirs."""
    return path in _DOCUMENTS or path.startswith(f"{PREFIX}/")
