"""A stand-in for the trainer: writes steps, checkpoints, an adapter and a canary like the real one, in a second.

Its weights follow from the recipe's seed and from every step in order, so that a step that is lost, or taken from
another state, shows in them.

Independent of the project. In its folder it also records every start (`starts`) and overlapping runs (`overlaps`).
A file `step_seconds` in the folder or next to it sets the time per step; a file `hold` next to it names a step that
no run makes while the file exists.
"""

import fcntl
import hashlib
import json
import os
import re
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
    done, state = last_state()
    emit("Training begins", {})
    for step in range(done + 1, STEPS + 1):
        hold(step)
        time.sleep(STEP_SECONDS)
        state = hashlib.sha256(f"{state} {step}".encode()).hexdigest()
        emit(f"Step {step}", {"step": step, "total_steps": STEPS, "train_loss": 1 / step}, kind="metrics")
        if step % 2 == 0 or pausing.is_set():
            checkpoint(step, state)
        if pausing.is_set():
            put("result.json", {"status": "paused", "steps": step})
            return
    save(Path("model" if trains_all() else "adapter"), state)
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


def last_state() -> tuple[int, str]:
    """The last step with a whole checkpoint, and what was trained up to it."""
    whole = Path("checkpoints").glob("*/manifest.json")
    found = [json.loads(path.with_name("trainer_state.json").read_text()) for path in whole]
    last = max(found, key=lambda one: one["global_step"], default={"global_step": 0, "state": seed()})
    return last["global_step"], last["state"]


def seed() -> str:
    """The recipe's seed; the trainer has no YAML parser."""
    recipe = Path("recipe.yaml")
    found = re.search(r"^ *seed: (\d+)$", recipe.read_text(), re.MULTILINE) if recipe.exists() else None
    return found[1] if found else ""


def checkpoint(step: int, state: str) -> None:
    folder = Path("checkpoints") / f"checkpoint-{step}"
    save(folder, state)
    put(str(folder / "trainer_state.json"), {"global_step": step, "state": state})
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


def save(folder: Path, state: str) -> None:
    """An adapter, or something that is as much of a model as the server looks at, whose weights hold `state`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if trains_all():
        put(str(folder / "config.json"), {})
        text = json.dumps({"__metadata__": {"state": state}}).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
        return
    put(str(folder / "adapter_config.json"), {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]})
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    header = {
        f"{layer}.lora_{part}.weight": {"dtype": "F32", "shape": shape, "data_offsets": [8 * n, 8 * n + 8]}
        for n, (part, shape) in enumerate((("A", [1, 2]), ("B", [2, 1])))
    }
    text = json.dumps(header).encode()
    numbers = struct.unpack("<4I", bytes.fromhex(state)[:16])
    weights = struct.pack("<4f", *(number / 2**32 - 0.5 for number in numbers))
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + weights)


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
