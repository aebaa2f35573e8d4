"""How much an engine serves at once, where the settings leave it open: by the device, and by the model."""

from alignkit_server.engine_settings import EngineSettings

AS_LONG_AS_FITS = "auto"
"""vLLM's --max-model-len for the model's own context, or as much of it as fits the KV cache."""
UNKNOWN_CONTEXT = 2048
"""Context of a model whose configuration names no limit, in tokens."""
OPEN_ANSWER = 2048
"""Tokens that an answer without `max_tokens` is counted as; few fill the context."""
SEQUENCES = {False: 20, True: 256}
ADAPTERS = {False: 4, True: 8}
"""Values without and with a GPU."""
OWN_SHARE, COMMON_SHARE = 0.9, 0.6
"""Shares of a GPU's memory for all engines on it: of a GPU of their own, and of one shared with training."""


def context_argument(engine: EngineSettings, positions: int | None) -> str:
    """vLLM's --max-model-len for a model with so many `positions`; None if its configuration does not say."""
    if engine.max_model_len is not None:
        return str(min(engine.max_model_len, positions or engine.max_model_len))
    return AS_LONG_AS_FITS if positions else str(UNKNOWN_CONTEXT)


def sequences_at_once(engine: EngineSettings, *, gpu: bool) -> int:
    """The number of sequences that an engine decodes at once."""
    return engine.max_num_seqs or SEQUENCES[gpu]


def adapters_at_once(engine: EngineSettings, *, gpu: bool) -> int:
    """The number of adapters in one batch."""
    return engine.max_loras or ADAPTERS[gpu]


def memory_share(engine: EngineSettings) -> float:
    """The share of a GPU's memory that one engine takes."""
    if engine.gpu_memory_utilization is not None:
        return engine.gpu_memory_utilization
    return round((OWN_SHARE if engine.gpus else COMMON_SHARE) / (engine.max_engines or 2), 3)
