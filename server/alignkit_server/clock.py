"""The clock of the API's timestamps."""

import time


def now() -> int:
    """Whole seconds since the epoch."""
    return int(time.time())
