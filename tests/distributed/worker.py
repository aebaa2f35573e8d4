"""What `accelerate launch` starts in these tests: recipes one after the other, and what this process held of each.

`python -m tests.distributed.worker RECIPE.yaml[:OPTION] …`, with the options kill=STEP, kill=finish, resume, late and
head. Every recipe runs in a fork of its own, so that importing torch, TRL and DeepSpeed, most of the time, is paid
once. `kill` ends it by SIGKILL: in the middle of the step after STEP, before the optimizer's turn, or when the last
step is done. With `late`, rank 1 begins seconds after rank 0, as a second machine does. What `head` does is in
`tests.distributed.heads`. What a process measured lies beside the run's folder, in NAME.rank-N.json.
"""

import gc
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from alignkit import train
from alignkit.recipe import Recipe

SECONDS_A_RECIPE = 600
LATE_SECONDS = 8
"""Longer than rank 0 needs to its first event."""


def main(arguments: list[str]) -> int:
    """The number of recipes that failed, or were to be killed and ended otherwise."""
    gc.disable()
    import alignkit.trainers  # noqa: F401 - before the forks

    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        import deepspeed

        # Compiled for a minute on a CPU, and used in inference alone.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

    gc.freeze()
    gc.enable()
    return sum(_in_fork(*argument.partition(":")[::2], turn) for turn, argument in enumerate(arguments))


def _in_fork(recipe: str, option: str, turn: int) -> int:
    child = os.fork()
    kill_after = option.removeprefix("kill=") if option.startswith("kill=") else None
    if child:
        _, status = os.waitpid(child, 0)
        return int(os.waitstatus_to_exitcode(status) != (0 if kill_after is None else -signal.SIGKILL))
    code = 1
    signal.alarm(SECONDS_A_RECIPE)  # a process whose partner failed waits for it
    try:
        if "MASTER_PORT" in os.environ:  # the launcher's store still has the keys of the run before
            os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
            os.environ["MASTER_PORT"] = str(int(os.environ["MASTER_PORT"]) + 1 + turn)
        if not torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_FSDP") == "true":
            _let_accelerate_shard_on_cpu()
        _measure_at_the_end(Path(Recipe.load(Path(recipe)).output_dir))
        if kill_after is not None:
            _kill_at_the_end() if kill_after == "finish" else _kill_after(int(kill_after))
        if option == "head":
            from tests.distributed import heads

            heads.watch(Path(Recipe.load(Path(recipe)).output_dir))
        if option == "late" and os.environ["RANK"] == "1":
            time.sleep(LATE_SECONDS)
        code = train.main([recipe, *([train.RESUME] if option == "resume" else [])])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Kill(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_pre_optimizer_step(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """No handler runs, nothing is written."""
        if state.global_step == self._step:
            os.kill(os.getpid(), signal.SIGKILL)


def _kill_after(step: int) -> None:
    build = train.build_trainer

    def deadly(*arguments: Any) -> Any:
        trainer = build(*arguments)
        trainer.add_callback(_Kill(step))
        return trainer

    train.build_trainer = deadly


def _kill_at_the_end() -> None:
    train.finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def _measure_at_the_end(output: Path) -> None:
    finish = train.finish

    def measured(trainer: Any, *arguments: Any) -> None:
        held = {
            "world_size": trainer.accelerator.num_processes,
            "distributed_type": str(trainer.accelerator.distributed_type),
            "optimizer_bytes": optimizer_bytes(trainer.optimizer),
            "parameter_bytes": sum(_bytes(weight) for weight in trainer.model.parameters()),
        }
        rank = trainer.accelerator.process_index
        output.with_name(f"{output.name}.rank-{rank}.json").write_text(json.dumps(held))
        finish(trainer, *arguments)

    train.finish = measured


def optimizer_bytes(optimizer: Any) -> int:
    """Of the moments that this process holds; the innermost optimizer has them."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return sum(
        _bytes(value)
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    )


def _bytes(tensor: Tensor) -> int:
    """Of a tensor, or of this process's part of it."""
    part = getattr(tensor, "ds_tensor", tensor)
    part = part.to_local() if isinstance(part, DTensor) else part
    return part.numel() * part.element_size()


def _let_accelerate_shard_on_cpu() -> None:
    """accelerate takes FSDP for accelerators alone; torch's FSDP2 runs on CPUs too."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
