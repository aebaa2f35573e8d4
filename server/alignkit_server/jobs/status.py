"""A job's states, as OpenAI names them; `paused` is in its examples, though not in its list.

validating_files -> queued -> running -> succeeded | failed
                      ^ |________|
               resume | v  pause                      cancel: from any state that is not a last one
                     paused
"""

PAUSED = "paused"
WAITING = ("validating_files", "queued")
ACTIVE = (*WAITING, "running")
UNFINISHED = (*ACTIVE, PAUSED)
FINISHED = ("succeeded", "failed", "cancelled")
