"""Paths of the page, which a browser requests before the user has signed in."""

PREFIX = "/page"
_DOCUMENTS = frozenset({"/", "/docs"})


def is_open(path: str) -> bool:
    """Whether `path` is the page, Swagger UI, or one of their files."""
    return path in _DOCUMENTS or path.startswith(f"{PREFIX}/")
