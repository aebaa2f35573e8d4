"""A job's states, named as in OpenAI's API (whose examples include `paused`, although its list does not).

validating_files -> queued -> running -> succeeded | failed
                      ^ |________|
               resume | v  pause                      cancel: from any unfinished state
                     paused
"""

PAUSED = "paused"
WAITING = ("validating_files", "queued")
ACTIVE = (*WAITING, "running")
UNFINISHED = (*ACTIVE, PAUSED)
FINISHED = ("succeeded", "failed", "cancelled")
