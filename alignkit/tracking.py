"""Experiment trackers that a run may report to, by name: tensorboard, wandb, trackio and mlflow.

A tracker's package has the tracker's name. Its credentials are the environment's, never the recipe's.
"""

import importlib.util
import os
import re
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from alignkit import extras
from alignkit.schema import Section

MAX_TRACKERS = 5
SECRET_LENGTH = 8
"""Characters below which a value is no secret, but a word that may stand anywhere."""
_SECRET_NAME = re.compile(r"KEY|TOKEN|PASSWORD|SECRET")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,127}$")]
RunName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f]{1,128}$")]
Tag = Annotated[str, StringConstraints(pattern=r"^[^\x00]{1,64}$")]


class TrackedRun(Section):
    """Where a tracker keeps the run."""

    project: Name
    name: RunName | None = Field(None, description="the run's; by default its folder's: a job's id")


class WandbRun(TrackedRun):
    """Where Weights & Biases keeps the run, as OpenAI's integration says it."""

    entity: Name | None = Field(None, description="user or team; by default the one the API key belongs to")
    tags: list[Tag] | None = Field(None, max_length=32)


class MLflowRun(TrackedRun):
    """Where MLflow keeps the run: the project is its experiment."""

    project: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9/][A-Za-z0-9 ._/@-]{0,127}$")]


class TensorBoardTracker(Section):
    """Event files in the run's folder, under tensorboard/."""

    type: Literal["tensorboard"] = "tensorboard"


class WandbTracker(WandbRun):
    """Weights & Biases."""

    type: Literal["wandb"] = "wandb"


class TrackioTracker(TrackedRun):
    """Trackio, local or a server's (TRACKIO_SERVER_URL)."""

    type: Literal["trackio"] = "trackio"


class MLflowTracker(MLflowRun):
    """MLflow; without MLFLOW_TRACKING_URI its files are in the run's folder."""

    type: Literal["mlflow"] = "mlflow"


Tracker = Annotated[
    TensorBoardTracker | WandbTracker | TrackioTracker | MLflowTracker, Field(discriminator="type")
]


def each_once(trackers: list[Any]) -> list[Any]:
    """`trackers` (whatever has a `type`); raises ValueError where two are of one type."""
    types = [tracker.type for tracker in trackers]
    if twice := sorted({name for name in types if types.count(name) > 1}):
        raise ValueError(f"expected each tracker once, found {', '.join(twice)} twice")
    return trackers


def installed(tracker: str) -> bool:
    """Whether the tracker's package can be imported; a folder of that name in the way is none."""
    spec = importlib.util.find_spec(tracker)
    return spec is not None and spec.origin is not None


def how_to_install(tracker: str) -> str:
    """The command that installs the tracker's package."""
    return extras.how_to_install("trackio" if tracker == "trackio" else "trackers")


def without_secrets(text: str) -> str:
    """`text` without credentials in URLs, and without the value of any variable that is named like a secret."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name.upper()) and len(value) >= SECRET_LENGTH:
            text = text.replace(value, "***")
    return _URL_CREDENTIALS.sub("***@", text)
