"""Private parts of DBOS and Ray that the server relies on; `tests/server/test_upstream.py` pins them.

Both are imported inside functions: a process on Ray needs no DBOS, and Ray is an optional extra.
"""

from collections.abc import Sequence
from typing import Any


def recover_workflows(executors: Sequence[str]) -> None:
    """Take over the pending workflows of dead executors, given by id. Idempotent; DBOS has no public equivalent."""
    from dbos import DBOS  # saves DBOS in a process of Ray

    DBOS._recover_pending_workflows(list(executors))


def supervisor(submission_id: str) -> tuple[str, str]:
    """(name, namespace) of the actor that runs a submitted job in Ray."""
    from ray.dashboard.modules.job.common import (  # an extra
        JOB_ACTOR_NAME_TEMPLATE,
        SUPERVISOR_ACTOR_RAY_NAMESPACE,
    )

    return JOB_ACTOR_NAME_TEMPLATE.format(job_id=submission_id), SUPERVISOR_ACTOR_RAY_NAMESPACE


def data_parallel_trainer() -> Any:
    """Ray Train's trainer of one function on several nodes; only its framework-specific subclasses are public."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # an extra

    return DataParallelTrainer
