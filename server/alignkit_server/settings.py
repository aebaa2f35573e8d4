"""Every setting of the service: environment variables with the prefix ALIGNKIT_ (nested: ALIGNKIT_ENGINE__PORT)."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from alignkit.home import DEFAULT_HOME


class Limits(BaseModel):
    """What one project may use; null is no limit. A project may have its own (POST /v1/organization/projects/…)."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: int | None = Field(3000, ge=1, le=10**9, description="of each key")
    jobs_queued: int | None = Field(1000, ge=0, le=10**9, description="jobs that wait")
    jobs_running: int | None = Field(None, ge=0, le=10**9, description="jobs at once; more of them wait")
    requests_open: int | None = Field(200, ge=1, le=10**9, description="requests that are being answered")
    streams_open: int | None = Field(20, ge=1, le=10**9, description="streams of events, of each key")
    tokens_open: int | None = Field(
        None, ge=1, le=10**12, description="tokens that one engine is asked for at once; more requests wait"
    )
    file_bytes: int | None = Field(64 * 2**30, ge=0, le=2**62, description="of all files together")
    gpu_seconds: int | None = Field(None, ge=0, le=10**12, description="of the jobs of the last 30 days")


class EngineSettings(BaseModel):
    """How vLLM is started for a base model."""

    model_config = ConfigDict(extra="forbid")

    dtype: str = Field("auto", description="vLLM's --dtype; auto is float32 without CUDA")
    max_model_len: int = Field(2048, ge=16, description="tokens of context, capped by the model's own limit")
    max_num_seqs: int = Field(
        20, ge=1, description="sequences at once, of which one project has at most seven eighths"
    )
    max_answer_bytes: int = Field(
        32 * 2**20, ge=1, description="of an answer that is no stream, which is held whole"
    )
    max_loras: int = Field(4, ge=1, description="adapters active in one batch")
    max_cpu_loras: int = Field(16, ge=1, description="adapters kept in memory")
    max_lora_rank: int = Field(64, ge=1, description="a job with a larger rank is refused")
    kv_cache_gib: int = Field(1, ge=1, description="KV cache without CUDA, GiB")
    gpu_memory_utilization: float = Field(0.5, gt=0, le=1)
    start_timeout_seconds: float = Field(600.0, gt=0)
    max_engines: int | None = Field(
        2, ge=1, description="engines at once; the longest unused one makes room for another"
    )
    idle_seconds: float | None = Field(None, gt=0, description="after which an unused engine is ended")
    urls: dict[str, str] = Field(
        default_factory=dict,
        description="base model to the URL of a vLLM that is run elsewhere and reads the adapters' folder",
    )
    extra_args: list[str] = Field(
        default_factory=list, description="appended to vLLM's command line as they are"
    )


class RaySettings(BaseModel):
    """A Ray cluster, and what each job is given of it."""

    model_config = ConfigDict(extra="forbid")

    address: str = Field("http://127.0.0.1:8265", pattern=r"^https?://", description="of its dashboard")
    token: SecretStr | None = Field(None, description="where the cluster asks for one (RAY_AUTH_MODE=token)")
    nodes: int = Field(1, ge=1, description="nodes of a job; several are Ray Train's")
    gpus: int = Field(1, ge=0, description="GPUs of a job on each of its nodes, one process each")
    cpus: int = Field(1, ge=1, description="CPUs of a job on each of its nodes")
    accelerate_config: str | None = Field(
        None, description="accelerate's configuration (recipes/accelerate/…), a path on the nodes"
    )
    storage: str | None = Field(
        None,
        description="where whole checkpoints are copied to, and come back from: s3://bucket/folder, a path",
    )
    python: str = Field("python", description="the interpreter on the nodes; alignkit is installed for it")
    waiting: int = Field(
        1,
        ge=0,
        description="jobs that may wait in Ray's queue beyond what its nodes hold; they make it scale up",
    )
    timeout_seconds: float = Field(10.0, gt=0, description="for one answer of the cluster")


class Settings(BaseSettings):
    """Where the service keeps things and what it allows."""

    model_config = SettingsConfigDict(env_prefix="ALIGNKIT_", env_nested_delimiter="__", extra="forbid")

    home: Path = Field(DEFAULT_HOME, description="database, files, jobs, models and adapters live here")
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    database_url: str | None = Field(None, description="SQLAlchemy URL; SQLite under home by default")
    project: str = Field("default", pattern=r"^[A-Za-z0-9_-]{1,32}$", description="the first project's name")
    training_slots: int = Field(1, ge=1, description="training jobs that run at once")
    max_file_bytes: int = Field(512 * 2**20, ge=1)
    max_upload_bytes: int = Field(8 * 2**30, ge=1, description="of an upload in parts")
    max_part_bytes: int = Field(64 * 2**20, ge=1, description="of one part of such an upload")
    max_line_bytes: int = Field(8 * 2**20, ge=1)
    max_request_bytes: int = Field(
        4 * 2**20, ge=1, description="body of a job, a prompt or an upload's end; of any other, 64 KiB"
    )
    max_connections: int = Field(
        1000, ge=1, description="at once; beyond them the one that has idled for longest is ended"
    )
    request_head_seconds: float = Field(
        30.0, gt=0, description="from a connection's beginning, or its last answer, to the next request"
    )
    stall_seconds: float = Field(
        60.0, gt=0, description="how long a client may take no byte of an answer, or send none of a body"
    )
    limits: Limits = Field(default_factory=Limits, description="of every project without its own")
    rate_limit_storage: str = Field(
        "memory://", description="where requests are counted: memory:// or redis://…"
    )
    executor: Literal["local", "ray"] = Field("local", description="where training runs")
    ray: RaySettings = Field(default_factory=RaySettings)
    stop_grace_seconds: float = Field(20.0, gt=0, description="between SIGTERM and SIGKILL of a child")
    pause_grace_seconds: float = Field(
        600.0, gt=0, description="what a paused run may take to finish its step and save, before it is ended"
    )
    metrics_open: bool = Field(
        False, description="/metrics answers without a key; otherwise to an admin's only"
    )
    training_restarts: int = Field(
        3, ge=0, description="how often a killed training process goes on from the same checkpoint"
    )
    webhook_private_targets: bool = Field(
        False, description="webhooks may go to private and loopback addresses, and over http"
    )
    engine: EngineSettings = Field(default_factory=EngineSettings)

    @property
    def root(self) -> Path:
        """`home`, expanded and absolute."""
        return self.home.expanduser().resolve()

    @property
    def files_dir(self) -> Path:
        return self.root / "files"

    @property
    def uploads_dir(self) -> Path:
        return self.root / "uploads"

    @property
    def jobs_dir(self) -> Path:
        return self.root / "jobs"

    @property
    def models_dir(self) -> Path:
        return self.root / "models"

    @property
    def adapters_dir(self) -> Path:
        return self.root / "adapters"

    @property
    def weights_dir(self) -> Path:
        """Fully trained models that are served."""
        return self.root / "weights"

    @property
    def engines_dir(self) -> Path:
        return self.root / "engines"

    @property
    def sqlalchemy_url(self) -> str:
        return self.database_url or f"sqlite:///{self.root / 'alignkit.sqlite'}"
