"""Publishes adapters to where the engine finds them, atomically: {adapters}/{base model}/{model name}/.

vLLM's filesystem resolver loads the folder of that name at the first request. Only the files it needs are
published: the config and the safetensors weights. A model name is never reused, because vLLM's prefix cache may
still hold entries of that name.
"""

import contextlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from safetensors import SafetensorError, safe_open

from alignkit.adapter_sections import HEAD_MODULES
from alignkit.disk import digest, sync
from alignkit.models.adapters import CONFIG_FILE, PLAIN_INITS, WEIGHTS_FILE
from alignkit.models.chat_templates import FILE as CHAT_TEMPLATE
from alignkit.models.importing import NAME_PATTERN
from alignkit.models.trainable import ENDS
from alignkit_server.engines.errors import AdapterError
from alignkit_server.settings import Settings

__all__ = ["AdapterError", "publish", "refuse_unservable", "unpublish"]

CARD = "README.md"
UNLOAD_SECONDS = 10.0
MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9_:-][A-Za-z0-9._:-]{0,249}")
"""Pattern of model names; each is a single path component."""

_UNSUPPORTED = {
    "modules_to_save": "fully trained modules (modules_to_save)",
    "use_dora": "DoRA (use_dora)",
    "lora_bias": "LoRA biases (lora_bias)",
    "alora_invocation_tokens": "activated LoRA (alora_invocation_tokens)",
    "layer_replication": "replicated layers (layer_replication)",
    "trainable_token_indices": "trained token embeddings (trainable_token_indices)",
    "use_qalora": "QALoRA (use_qalora)",
}
_WEIGHT_SUFFIXES = (".lora_A.weight", ".lora_B.weight")

logger = logging.getLogger(__name__)


def publish(
    settings: Settings,
    adapter_dir: Path,
    *,
    model_name: str,
    base_model: str,
    chat_template: str | None = None,
    ends: Sequence[int] = (),
) -> Path:
    """Copy the peft adapter in `adapter_dir` to the folder it is served from, and return that folder. Idempotent.

    `chat_template` is the text of the template to serve it with, if that is not its base model's; `ends` are further
    tokens that end its answers. Raises AdapterError if vLLM could not serve the adapter, or if another adapter has
    the name.
    """
    target = _place(settings, model_name, base_model)
    weights = adapter_dir / WEIGHTS_FILE
    config = _read_config(adapter_dir)
    refuse_unservable(config, weights, max_rank=settings.engine.max_lora_rank)
    # The resolver accepts an adapter only if this name equals that of the base model.
    served = json.dumps(config | {"base_model_name_or_path": base_model}, indent=2).encode()
    if target.exists():
        if _same(target, served, weights):
            return target
        raise AdapterError(
            f"the model name {model_name!r} is taken by another adapter; names are never reused"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(
        f".publishing-{model_name}"
    )  # a fixed name: the next attempt replaces an interrupted one
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        shutil.copyfile(weights, staging / WEIGHTS_FILE)
        (staging / CONFIG_FILE).write_bytes(served)
        if chat_template is not None:
            (staging / CHAT_TEMPLATE).write_text(chat_template, encoding="utf-8")
        if (adapter_dir / CARD).is_file():
            shutil.copyfile(adapter_dir / CARD, staging / CARD)
        if ends:
            (staging / ENDS).write_text(json.dumps({"eos_token_id": list(ends)}), encoding="utf-8")
        for path in (*sorted(staging.iterdir()), staging):
            sync(path)
        staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync(target.parent)
    return target


def unpublish(settings: Settings, *, model_name: str, base_model: str, engine_url: str | None = None) -> None:
    """Remove the adapter and ask the engine at `engine_url`, if given, to unload it. Idempotent.

    The files go first: an engine that unloaded the adapter could otherwise load it again.
    """
    target = _place(settings, model_name, base_model)
    if target.exists():
        trash = Path(tempfile.mkdtemp(prefix=".removed-", dir=target.parent))
        with contextlib.suppress(FileNotFoundError):
            target.rename(trash / "adapter")
        shutil.rmtree(trash, ignore_errors=True)
    if engine_url is not None:
        _ask_to_unload(engine_url, model_name)


def refuse_unservable(config: dict[str, Any], weights: Path, *, max_rank: int) -> None:
    """Raise AdapterError if vLLM cannot serve the adapter; `config` is its adapter_config.json.

    Reads only names and shapes, from the header of the weights file.
    """
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"only LoRA adapters can be served, found peft_type {config.get('peft_type')!r}")
    for key, words in _UNSUPPORTED.items():
        if config.get(key):
            raise AdapterError(
                f"the adapter cannot be served: vLLM does not support {words}, found {config[key]!r}"
            )
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        raise AdapterError(
            f"the adapter cannot be served: init_lora_weights {init!r} changes the base weights; "
            f"expected true or one of {', '.join(PLAIN_INITS)}"
        )
    shapes = _shapes(weights)
    for name, shape in shapes.items():
        if HEAD_MODULES & set(name.split(".")):
            raise AdapterError(
                f"the adapter cannot be served: vLLM does not support LoRA on heads and embeddings, found {name}"
            )
        if not name.endswith(_WEIGHT_SUFFIXES):
            raise AdapterError(f"the adapter cannot be served: expected only LoRA weights, found {name}")
        if name.endswith(_WEIGHT_SUFFIXES[0]) and shape[0] > max_rank:
            raise AdapterError(
                f"the adapter cannot be served: its rank is {shape[0]} ({name}), the limit is {max_rank} "
                "(engine.max_lora_rank)"
            )
    if not shapes:
        raise AdapterError(f"the adapter cannot be served: {WEIGHTS_FILE} holds no weights")


def _place(settings: Settings, model_name: str, base_model: str) -> Path:
    if not NAME_PATTERN.fullmatch(base_model):
        raise AdapterError(f"{base_model!r} is not the name of a base model")
    if not MODEL_NAME_PATTERN.fullmatch(model_name):
        raise AdapterError(
            f"model name {model_name!r}: expected 1 to 250 letters, digits, ':', '.', '_' or '-', the first not '.'"
        )
    return settings.adapters_dir / base_model / model_name


def _read_config(adapter_dir: Path) -> dict[str, Any]:
    try:
        config = json.loads((adapter_dir / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise AdapterError(f"the adapter's {CONFIG_FILE} cannot be read") from error
    if not isinstance(config, dict):
        raise AdapterError(f"the adapter's {CONFIG_FILE}: expected an object")
    return config


def _shapes(weights: Path) -> dict[str, list[int]]:
    try:
        with safe_open(weights, framework="numpy") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"the adapter's {WEIGHTS_FILE} cannot be read") from error


def _same(target: Path, config: bytes, weights: Path) -> bool:
    try:
        return (target / CONFIG_FILE).read_bytes() == config and digest(target / WEIGHTS_FILE) == digest(
            weights
        )
    except OSError:
        return False


def _ask_to_unload(url: str, model_name: str) -> None:
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=UNLOAD_SECONDS) as client:
            response = client.post("/v1/unload_lora_adapter", json={"lora_name": model_name})
    except httpx.HTTPError as error:
        logger.warning("the engine could not be asked to unload %s: %s", model_name, error)
        return
    if response.is_error and response.status_code != httpx.codes.NOT_FOUND:
        logger.warning("the engine did not unload %s: status %s", model_name, response.status_code)
