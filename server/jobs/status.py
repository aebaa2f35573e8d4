"""A job's states, as OpenAI names them."""

WAITING = ("validating_files", "queued")
ACTIVE = (*WAITING, "running")
FINISHED = ("succeeded", "failed", "cancelled")
