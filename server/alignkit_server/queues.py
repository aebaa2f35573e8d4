"""Queues of DBOS in which projects take turns."""

from dbos import DBOS


def take_turns(queue: str, *, at_once: int, of_a_project: int) -> None:
    """Register a queue partitioned by project: `at_once` workflows of a server, `of_a_project` of one project."""
    DBOS.register_queue(
        queue,
        worker_concurrency=at_once,
        partition_worker_concurrency=of_a_project,
        polling_interval_sec=0.5,
        on_conflict="always_update",
    )
