"""Private parts of DBOS and Ray that the server relies on; `tests/server/test_upstream.py` pins them.

Both are imported inside functions: a process on Ray needs no DBOS, and Ray is an optional extra.
"""

import time
from collections.abc import Sequence
from typing import Any


def recover_workflows(executors: Sequence[str]) -> None:
    """Take over the pending workflows of dead executors, given by id. Idempotent; DBOS has no public equivalent."""
    from dbos import DBOS  # saves DBOS in a process of Ray

    DBOS._recover_pending_workflows(list(executors))


def running_workflows() -> set[str]:
    """Ids of the workflows that threads of this process work on; DBOS has no public equivalent."""
    from dbos._dbos import _get_dbos_instance  # saves DBOS in a process of Ray

    return set(_get_dbos_instance()._active_workflows_set.activeList())


def recover_workflow(workflow_id: str, executor: str) -> None:
    """Recover one pending workflow of an executor. Idempotent. DBOS offers this only for all workflows at once."""
    from dbos._dbos import _get_dbos_instance  # saves DBOS in a process of Ray
    from dbos._utils import INTERNAL_QUEUE_NAME  # saves DBOS in a process of Ray

    _get_dbos_instance()._sys_db.reenqueue_for_recovery(workflow_id, [executor], INTERNAL_QUEUE_NAME)


def bound_retries(seconds: float) -> None:
    """Limit DBOS's pause between two attempts to reach its database.

    The default is up to 90 seconds, which would delay all work after an outage. No public option sets it.
    """
    from dbos import _sys_db  # saves DBOS in a process of Ray

    class Clock:
        """A stand-in for the module `time` in DBOS's database module."""

        def __getattr__(self, name: str) -> Any:
            return getattr(time, name)

        def sleep(self, wanted: float) -> None:
            time.sleep(min(wanted, seconds))

    vars(_sys_db)["time"] = Clock()


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
