"""Settings of the engines (ALIGNKIT_ENGINE__…), some of them also by base model."""

from pydantic import BaseModel, ConfigDict, Field


class ModelEngine(BaseModel):
    """Options for starting vLLM that may differ between base models."""

    model_config = ConfigDict(extra="forbid")

    dtype: str = Field("auto", description="vLLM's --dtype; auto is float32 without CUDA")
    max_model_len: int | None = Field(
        None,
        ge=16,
        description="context length in tokens; default: the model's, or as much of it as fits the KV cache",
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="sequences decoded at once, of which one project gets at most seven eighths; default: 256 on a "
        "GPU, else 20",
    )
    max_loras: int | None = Field(
        None, ge=1, description="adapters active in one batch; default: 8 on a GPU, else 4"
    )
    max_cpu_loras: int = Field(16, ge=1, description="adapters kept in CPU memory")
    tool_parser: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        description="vLLM's --tool-call-parser, none for no tool calls; default: by the model's chat template",
    )
    kv_cache_gib: int = Field(1, ge=1, description="size of the KV cache without CUDA, in GiB")
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of a GPU's memory that an engine takes; default: 0.9 divided by max_engines on GPUs "
        "of the engines' own (gpus), 0.6 divided by it on GPUs shared with training",
    )
    extra_args: list[str] = Field(
        default_factory=list, description="appended to vLLM's command line unchanged"
    )


class EngineSettings(ModelEngine):
    """Options for starting vLLM for a base model."""

    max_answer_bytes: int = Field(
        32 * 2**20,
        ge=1,
        description="maximum size of an answer without streaming, and of one event of a stream, held in memory",
    )
    structured_patience_seconds: float = Field(
        60.0,
        gt=0,
        description="seconds after which a waiting structured answer makes the service test its engine",
    )
    max_lora_rank: int = Field(
        64,
        ge=1,
        le=512,
        description="largest LoRA rank, to which an engine grows by a restart when an adapter needs it; a job with a "
        "larger one is refused",
    )
    confine: bool = Field(
        False, description="hide the home from local engines, except the models and adapters that they serve"
    )
    start_timeout_seconds: float = Field(
        600.0, gt=0, description="seconds after which a starting engine has failed"
    )
    gpus: list[int] | None = Field(
        None, description="GPUs of the engines, which no job is given; default: all, shared with training"
    )
    max_engines: int | None = Field(
        2, ge=1, description="engines running at once; a new one replaces the one idle for longest"
    )
    idle_seconds: float | None = Field(
        None, gt=0, description="seconds after which an idle engine is stopped"
    )
    sleeping: int = Field(
        0,
        ge=0,
        description="idle engines on a GPU that keep their weights in the server's memory instead of ending, so that "
        "the next request waits for seconds only",
    )
    cache_bytes: int = Field(
        16 * 2**30,
        ge=0,
        description="bytes kept on disk of what vLLM compiles on a GPU, so that engines start faster; beyond, the "
        "engines not started for longest lose theirs",
    )
    urls: dict[str, str] = Field(
        default_factory=dict,
        description="base model to the URL of an external vLLM server that can read the adapters folder",
    )
    models: dict[str, ModelEngine] = Field(
        default_factory=dict,
        description="base model to options that replace these for its engine: "
        + ", ".join(ModelEngine.model_fields),
    )

    def of(self, model: str) -> "EngineSettings":
        """The options for the engine of a base model, or of a model that was trained from it with all weights."""
        base = model.split(":")[1] if model.startswith("ft:") else model
        own = self.models.get(base)
        return self.model_copy(update=own.model_dump(exclude_unset=True)) if own else self
