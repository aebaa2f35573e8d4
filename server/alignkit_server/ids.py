"""Public ids: a prefix that names the kind of object, then 24 random base62 characters (142 bits)."""

import hashlib
import secrets
import string

ALPHABET = string.digits + string.ascii_letters
LENGTH = 24

PROJECT = "proj_"
KEY = "key_"
FILE = "file-"
JOB = "ftjob-"
SWEEP = "ftsweep-"
EVENT = "ft-event-"
CHECKPOINT = "ftckpt_"
MODEL = "model_"
UPLOAD = "upload_"
PART = "part_"
PERMISSION = "cp_"
WEBHOOK = "we_"
DELIVERY = "evt_"
SERVER = "server_"
AUDIT = "audit_log-"
EVAL = "eval_"
EVAL_RUN = "evalrun_"
EVAL_ITEM = "outputitem_"


def new_id(prefix: str) -> str:
    """A new id, such as `ftjob-…` for `JOB`."""
    return prefix + "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))


def fixed_id(prefix: str, *parts: str) -> str:
    """A deterministic id, equal for equal `parts`, so that retries create nothing twice."""
    return prefix + hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:LENGTH]


def rung_event(step: int) -> str:
    """The `once` name of a job's event that says it paused where its sweep compares the jobs, at this step."""
    return f"rung {step}"
