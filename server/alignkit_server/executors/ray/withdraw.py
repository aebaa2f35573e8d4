"""Withdraws a job from Ray's queue: `python -m alignkit_server.executors.ray.withdraw SUBMISSION_ID`, as a Ray job.

Ray runs a job through an actor that waits for the job's resources; for a PENDING job, the actor is not yet placed.
"""

import sys

import ray
from ray.util.state import list_actors

from alignkit_server.upstream import supervisor

WAITING = frozenset({"DEPENDENCIES_UNREADY", "PENDING_CREATION"})


def main() -> None:
    """Remove the job's actor if it still waits; Ray then reports the job as FAILED."""
    (submission_id,) = sys.argv[1:]
    ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
    name, namespace = supervisor(submission_id)
    states = {actor.state for actor in list_actors(filters=[("name", "=", name)])}
    if states & WAITING:
        ray.kill(ray.get_actor(name, namespace=namespace))
        print(f"{submission_id} is withdrawn")


if __name__ == "__main__":
    main()
