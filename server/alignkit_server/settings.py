"""All settings of the service: environment variables with the prefix ALIGNKIT_ (nested: ALIGNKIT_ENGINE__PORT)."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from alignkit.errors import AlignkitError, nearest
from alignkit.home import DEFAULT_HOME
from alignkit.schema import field_issues
from alignkit_server.engine_settings import EngineSettings

DAY = 24 * 3600
"""Seconds."""


class Limits(BaseModel):
    """Limits of one project; null means no limit. A project can have its own (POST /v1/organization/projects/…)."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: int | None = Field(
        3000, ge=1, le=10**9, description="requests per minute of each key"
    )
    jobs_queued: int | None = Field(1000, ge=0, le=10**9, description="jobs waiting in the queue")
    jobs_running: int | None = Field(
        None, ge=0, le=10**9, description="jobs running at once; further jobs wait"
    )
    requests_open: int | None = Field(200, ge=1, le=10**9, description="requests being answered at once")
    streams_open: int | None = Field(20, ge=1, le=10**9, description="open event streams per key")
    tokens_open: int | None = Field(
        None, ge=1, le=10**12, description="tokens requested from one engine at once; further requests wait"
    )
    eval_runs_open: int | None = Field(20, ge=0, le=10**9, description="runs of evals that wait or run")
    file_bytes: int | None = Field(
        64 * 2**30, ge=0, le=2**62, description="total size of all files and parts of uploads"
    )
    disk_bytes: int | None = Field(
        2**40, ge=0, le=2**62, description="total size of files, parts, and the folders and models of jobs"
    )
    gpu_seconds: int | None = Field(
        60 * DAY, ge=0, le=10**12, description="seconds times GPUs of the jobs of the last 30 days"
    )
    job_gpu_seconds: int | None = Field(7 * DAY, ge=1, le=10**12, description="seconds times GPUs of one job")


class RaySettings(BaseModel):
    """The Ray cluster, and the resources of each job on it."""

    model_config = ConfigDict(extra="forbid")

    address: str = Field(
        "http://127.0.0.1:8265", pattern=r"^https?://", description="URL of the Ray dashboard"
    )
    token: SecretStr | None = Field(
        None, description="token, if the cluster requires one (RAY_AUTH_MODE=token)"
    )
    nodes: int = Field(1, ge=1, description="nodes per job; more than one uses Ray Train")
    gpus: int = Field(1, ge=0, description="GPUs per node of a job, one process each")
    cpus: int = Field(1, ge=1, description="CPUs per node of a job")
    accelerate_config: str | None = Field(
        None, description="accelerate configuration: a path on the nodes, or a name such as zero3"
    )
    storage: str | None = Field(
        None,
        description="where complete checkpoints are stored and restored from: s3://bucket/folder or a path",
    )
    python: str = Field("python", description="the Python interpreter on the nodes, with alignkit installed")
    waiting: int = Field(
        1,
        ge=0,
        description="jobs submitted to Ray beyond the capacity of its nodes, so that it scales up",
    )
    timeout_seconds: float = Field(10.0, gt=0, description="seconds to wait for an answer of the cluster")


PREFIX = "ALIGNKIT_"
NESTED = "__"
OTHERS: dict[str, tuple[str | None, str]] = {
    "API_KEY": (None, "the command's key; default: the first key of a service on this machine"),
    "BASE_URL": ("http://127.0.0.1:8000/v1", "the service that the command talks to"),
    "DEMO_HOME": (".alignkit/demo", "folder of the demo's service"),
    "KERNELS": (
        None,
        "implementation of the fused heads: torch, triton or reference; default: by the device",
    ),
    "AMX": ("auto", "a CPU's bfloat16 products in the heads: auto, where the processor has AMX, on or off"),
    "LOGITS": ("float32", "dtype of the Triton kernels' logits; bf16 is faster and less exact"),
    "REPORT": ("on", "off: runs and jobs write no report"),
}
"""Variable without the prefix -> default and meaning, of what the command, the library and the demo read."""
INTERNAL = frozenset({"PROCESS_TOKEN"})
"""Variables without the prefix that the service sets for its own processes."""


class Settings(BaseSettings):
    """Settings of the service: storage, limits, engines and the executor."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter=NESTED, env_parse_none_str="null", extra="forbid"
    )

    home: Path = Field(DEFAULT_HOME, description="folder of the database, files, jobs, models and adapters")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    database_url: str | None = Field(None, description="SQLAlchemy URL; SQLite under home by default")
    project: str = Field("default", pattern=r"^[A-Za-z0-9_-]{1,32}$", description="the first project's name")
    training_slots: int | None = Field(
        None,
        ge=1,
        description="training jobs that run at once; by default as many as the GPUs hold, without a GPU one",
    )
    gpus_per_job: int = Field(1, ge=1, description="GPUs of a job that does not say `gpus`; local executor")
    price_per_gpu_hour: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="what an hour of a GPU costs; estimates then have a cost"
    )
    currency: str = Field("USD", pattern=r"^\S{1,8}$", description="currency of the price, as it is shown")
    max_file_bytes: int = Field(512 * 2**20, ge=1, description="maximum size of a file in one request")
    max_upload_bytes: int = Field(8 * 2**30, ge=1, description="maximum size of an upload in parts")
    max_part_bytes: int = Field(64 * 2**20, ge=1, description="maximum size of one part of an upload")
    max_line_bytes: int = Field(8 * 2**20, ge=1, description="maximum size of one row of a data file")
    file_check_bytes: int = Field(
        4 * 2**30,
        ge=2**28,
        description="maximum memory for reading one data file: a check, preview or estimate",
    )
    file_check_seconds: float = Field(600.0, gt=0, description="maximum seconds for reading one data file")
    export_bytes: int = Field(
        64 * 2**30, ge=2**28, description="maximum memory for making one archive of a merged model or GGUF"
    )
    export_seconds: float = Field(3600.0, gt=0, description="maximum seconds for making one such archive")
    max_request_bytes: int = Field(
        4 * 2**20,
        ge=1,
        description="body of a job, a prompt or an upload's completion; 64 KiB for all others",
    )
    max_connections: int = Field(
        1000, ge=1, description="open connections; a further one replaces the one idle for longest"
    )
    request_head_seconds: float = Field(
        30.0,
        gt=0,
        description="seconds from a connection's start, or last answer, to the next request's headers",
    )
    stall_seconds: float = Field(
        60.0, gt=0, description="seconds a client may go without reading an answer or sending a body"
    )
    sweep_seconds: float = Field(
        60.0,
        gt=0,
        description="seconds between two removals of expired files and checks of running jobs' limits",
    )
    run_retention_days: float | None = Field(
        30.0,
        gt=0,
        description="days for which a finished job's checkpoints, samples and logs are kept; its models stay",
    )
    audit_retention_days: float | None = Field(
        365.0, gt=0, description="days for which the audit log keeps an action; null: for ever"
    )
    max_log_bytes: int = Field(
        64 * 2**20,
        ge=1,
        description="maximum size of a run's or an engine's log; of a larger one the end is kept",
    )
    limits: Limits = Field(default_factory=Limits, description="limits of projects without their own")
    rate_limit_storage: str = Field(
        "memory://", description="storage of request counts: memory:// or redis://…"
    )
    executor: Literal["local", "ray"] = Field("local", description="where training runs")
    ray: RaySettings = Field(default_factory=RaySettings, description="the Ray cluster")
    confine_training: bool = Field(
        False, description="hide the home from local training, except its own folder and what it reads"
    )
    standby_seconds: float = Field(
        600.0,
        ge=0,
        description="seconds that a local trainer waits, with its base model loaded, for the next job on it; 0: none",
    )
    stop_grace_seconds: float = Field(
        20.0, gt=0, description="seconds between SIGTERM and SIGKILL of a child process"
    )
    pause_grace_seconds: float = Field(
        600.0,
        gt=0,
        description="seconds a paused run may take to finish its step and save before it is killed",
    )
    result_files: Literal["base64", "csv"] = Field(
        "base64", description="how the content of a job's result file is encoded; OpenAI's is base64"
    )
    metrics_open: bool = Field(
        False,
        description="/metrics answers without a key; if false, it needs a key with the scope metrics or admin",
    )
    training_restarts: int = Field(
        3, ge=0, description="how often a killed training process is restarted from the same checkpoint"
    )
    webhook_private_targets: bool = Field(
        False, description="webhooks may target private and loopback addresses, and use http"
    )
    engine: EngineSettings = Field(default_factory=EngineSettings, description="the vLLM processes")

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
    def incoming_dir(self) -> Path:
        """Temporary files of what is being uploaded, a folder for each project."""
        return self.root / "incoming"

    @property
    def jobs_dir(self) -> Path:
        return self.root / "jobs"

    @property
    def models_dir(self) -> Path:
        return self.root / "models"

    @property
    def templates_dir(self) -> Path:
        """Folder for the operator's chat templates NAME.jinja, which jobs may name in addition to TRL's."""
        return self.root / "chat_templates"

    @property
    def adapters_dir(self) -> Path:
        return self.root / "adapters"

    @property
    def exports_dir(self) -> Path:
        """Models in other forms, each for one download."""
        return self.root / "exports"

    @property
    def references_dir(self) -> Path:
        """Log-probs under references, a folder for each project's jobs."""
        return self.root / "references"

    @property
    def tokens_dir(self) -> Path:
        """Token ids of rows: a folder for each project's jobs, and in it one for each data file."""
        return self.root / "tokens"

    @property
    def standbys_dir(self) -> Path:
        """Identities and logs of trainers that wait for a job."""
        return self.root / "standbys"

    @property
    def leases_dir(self) -> Path:
        """Which run has which GPU."""
        return self.root / "leases"

    @property
    def weights_dir(self) -> Path:
        """Fully trained models that the engines serve."""
        return self.root / "weights"

    @property
    def engine_caches_dir(self) -> Path:
        """What vLLM compiles, a folder for each model that has an engine."""
        return self.root / "engine-caches"

    @property
    def engines_dir(self) -> Path:
        return self.root / "engines"

    @property
    def sqlalchemy_url(self) -> str:
        return self.database_url or f"sqlite:///{self.root / 'alignkit.sqlite'}"

    @property
    def queue_file(self) -> Path:
        """DBOS's database, where the service has none but SQLite."""
        return self.root / "dbos.sqlite"


def load_settings(**given: Any) -> Settings:
    """The settings: `given`, else the environment's. Raises AlignkitError, a sentence per variable."""
    try:
        return Settings(**given)
    except ValidationError as error:
        issues = field_issues(error, siblings=_siblings)
        raise AlignkitError("\n".join(f"{_variable(i.path)}: {i.message}" for i in issues)) from error
    except SettingsError as error:
        raise AlignkitError(f"{error}: expected JSON") from error


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable with the prefix that nothing reads, with the nearest name of a setting."""
    known = [PREFIX + name.upper() for name in (*Settings.model_fields, *OTHERS, *sorted(INTERNAL))]
    return [
        f"{variable} is not a setting and does nothing{nearest(variable.partition(NESTED)[0], known)}"
        for variable in sorted(environment)
        if variable.startswith(PREFIX)
        and variable.partition(NESTED)[0] not in known
        and not variable.startswith(f"{PREFIX}TEST_")
    ]


def _variable(path: str) -> str:
    return PREFIX + path.upper().replace(".", NESTED)


def _siblings(keys: tuple[str, ...]) -> Iterable[str]:
    """The names of the settings in the section in which the last of `keys` stands."""
    section: Any = Settings
    for key in keys[:-1]:
        field = section.model_fields.get(key)
        section = None if field is None else field.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return ()
    return section.model_fields
