"""States of a run of an eval, and of its rows, named as in OpenAI's API."""

QUEUED = "queued"
IN_PROGRESS = "in_progress"
COMPLETED = "completed"
FAILED = "failed"
CANCELED = "canceled"
OPEN = (QUEUED, IN_PROGRESS)

WAITING = "waiting"
PASS = "pass"  # noqa: S105 - a row that passed
FAIL = "fail"
ERROR = "error"
COUNTED_AS = {PASS: "passed", FAIL: "failed", ERROR: "errored"}
"""A row's state -> the count of the run that it belongs to."""
