"""A stand-in for the trainer: writes steps, checkpoints, an adapter and a canary like the real one, in a second.

Independent of the project. In its folder it also records every start (`starts`) and overlapping runs (`overlaps`).
A file `step_seconds` in the folder or next to it sets the time per step; a file `hold` next to it names a step that
no run makes while the file exists.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

STEPS = 6
STEP_SECONDS = next(
    (float(file.read_text()) for file in (Path("step_seconds"), Path("../step_seconds")) if file.exists()),
    0.15,
)
pausing = threading.Event()


def main() -> None:
    signal.signal(signal.SIGTERM, pause)
    note("starts", f"{os.getpid()} {'resume' if '--resume' in sys.argv else 'begin'}")
    lock = Path("lock").open("w")  # noqa: SIM115 - held until the process ends, however it does
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        note("overlaps", str(os.getpid()))
    done = last_step()
    emit("Training begins", {})
    for step in range(done + 1, STEPS + 1):
        hold(step)
        time.sleep(STEP_SECONDS)
        emit(f"Step {step}", {"step": step, "total_steps": STEPS, "train_loss": 1 / step}, kind="metrics")
        if step % 2 == 0 or pausing.is_set():
            checkpoint(step)
        if pausing.is_set():
            put("result.json", {"status": "paused", "steps": step})
            return
    save(Path("model" if trains_all() else "adapter"))
    numbers = {"adapter_logprobs": [-1.0, -1.5], "base_logprobs": None if trains_all() else [-2.0, -2.5]}
    put(
        "canary.json",
        {"prompt_token_ids": [1, 2], "completion_token_ids": [3, 4], "dtype": "float32"} | numbers,
    )
    put("result.json", {"status": "succeeded", "steps": STEPS, "trained_tokens": 100})


def hold(step: int) -> None:
    file = Path("../hold")
    while not pausing.is_set() and file.exists() and step >= int(file.read_text()):
        time.sleep(0.05)


def pause(*_: object) -> None:
    pausing.set()


def last_step() -> int:
    whole = Path("checkpoints").glob("*/manifest.json")
    states = (path.with_name("trainer_state.json") for path in whole)
    return max((json.loads(state.read_text())["global_step"] for state in states), default=0)


def checkpoint(step: int) -> None:
    folder = Path("checkpoints") / f"checkpoint-{step}"
    save(folder)
    put(str(folder / "trainer_state.json"), {"global_step": step})
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
    }
    put(str(folder / "manifest.json"), {"processes": 1, "files": files})
    emit("Checkpoint", {"step": step, "path": str(folder), "metrics": {}}, kind="checkpoint")


def trains_all() -> bool:
    """Whether the recipe asks for all weights; the trainer has no YAML parser."""
    recipe = Path("recipe.yaml")
    return recipe.exists() and "\nlora: null\n" in recipe.read_text()


def save(folder: Path) -> None:
    """An adapter, or something that is as much of a model as the server looks at."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if trains_all():
        put(str(folder / "config.json"), {})
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
        return
    put(str(folder / "adapter_config.json"), {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]})
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    header = {
        f"{layer}.lora_{part}.weight": {"dtype": "F32", "shape": shape, "data_offsets": [8 * n, 8 * n + 8]}
        for n, (part, shape) in enumerate((("A", [1, 2]), ("B", [2, 1])))
    }
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))


def put(path: str, value: Any) -> None:
    Path(f"{path}.new").write_text(json.dumps(value))
    Path(f"{path}.new").replace(path)


def emit(message: str, data: Any, kind: str = "message") -> None:
    event = {"created_at": int(time.time()), "level": "info", "type": kind, "message": message, "data": data}
    note("events.jsonl", json.dumps(event))


def note(name: str, line: str) -> None:
    with Path(name).open("a") as file:
        file.write(line + "\n")


main()
