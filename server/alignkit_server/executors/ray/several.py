"""Runs training over several nodes: Ray Train reserves them together, accelerate and DeepSpeed train on them."""

import os
import threading

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.collective import broadcast_from_rank_zero
from ray.util import get_node_ip_address

from alignkit.launch import Machine
from alignkit_server.engines.process import free_port
from alignkit_server.executors.ray.submission import Submission, marks
from alignkit_server.executors.ray.supervisor import BEAT_SECONDS, supervise
from alignkit_server.upstream import data_parallel_trainer


def run(submission: Submission) -> int:
    """Run the submission on as many nodes as it requests; returns 0 if the processes of all nodes succeeded."""
    order = submission.order
    ray.init()  # connects to the cluster of this job, from Ray's environment variables
    _give_up_while_waiting(submission)
    trainer = data_parallel_trainer()(
        _on_node,
        train_loop_config={"submission": submission},
        scaling_config=ScalingConfig(
            num_workers=order.nodes,
            use_gpu=order.gpus > 0,
            resources_per_worker={"CPU": order.cpus} | ({"GPU": order.gpus} if order.gpus else {}),
            placement_strategy="STRICT_SPREAD",
        ),
        # The service restarts a failed run from the last whole checkpoint, for one node and for many alike.
        run_config=RunConfig(
            name=submission.id,
            storage_path=str(marks(submission.folder)),
            failure_config=FailureConfig(max_failures=0),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        print(f"the run over {order.nodes} nodes failed: {error}", flush=True)
        return 1
    return 0


def _on_node(config: dict[str, Submission]) -> None:
    """Run this node's part of the run, in the node's worker."""
    submission, rank = config["submission"], get_context().get_world_rank()
    address, port = broadcast_from_rank_zero((get_node_ip_address(), free_port("")) if rank == 0 else None)
    machine = Machine(rank=rank, total=submission.order.nodes, address=address, port=port)
    status = supervise(submission, machine)
    if status:
        raise RuntimeError(f"the training processes of node {rank} ended with status {status}")


def _give_up_while_waiting(submission: Submission) -> None:
    """Exit this process if the run is paused or ended before its nodes are found: there is nothing to save."""

    def watch() -> None:
        while True:
            threading.Event().wait(BEAT_SECONDS)
            begun = any(marks(submission.folder).glob(f"alive-{submission.number}-*"))
            if not begun and (submission.pausing() or not submission.current()):
                os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
