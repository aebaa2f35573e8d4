"""Environment variables of training processes: few, and of secrets only those of the run's trackers."""

import os
from pathlib import Path

import yaml

from alignkit.run.folder import REPORT_SWITCH, RunFolder
from alignkit_server.engines.process import child_environment

ALWAYS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
NETWORK = ("HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
TRACKER_VARIABLES = {
    "tensorboard": (),
    "wandb": ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", *NETWORK),
    "trackio": ("TRACKIO_DIR", "TRACKIO_SERVER_URL", "TRACKIO_WRITE_TOKEN", *NETWORK),
    "mlflow": (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        *NETWORK,
    ),
}
"""Tracker -> variables of this server that are passed to runs which report to it."""

NICE = 10
"""How much nicer than the server a trainer is; more than an engine, so that answers come before training."""


def training_environment(folder: Path) -> dict[str, str]:
    """The environment of the run in `folder`, whose recipe names its trackers."""
    recipe = yaml.safe_load(RunFolder(folder).recipe.read_text(encoding="utf-8"))
    trackers = [tracker["type"] for tracker in (recipe.get("training") or {}).get("report_to", [])]
    given = {
        name: os.environ[name]
        for tracker in trackers
        for name in TRACKER_VARIABLES[tracker]
        if name in os.environ
    }
    return common_environment() | given


def common_environment() -> dict[str, str]:
    """The variables of every run. A run imports its packages from where this server does."""
    switch = {REPORT_SWITCH: os.environ[REPORT_SWITCH]} if REPORT_SWITCH in os.environ else {}
    folders = [
        Path(folder).absolute() for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder
    ]
    searched = {"PYTHONPATH": os.pathsep.join(map(str, folders))} if folders else {}
    return child_environment(ALWAYS | switch | searched)
