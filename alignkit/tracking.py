"""Experiment trackers that a run can report to: tensorboard, wandb, trackio and mlflow.

A tracker's package has the tracker's name. Credentials come from the environment, never from the recipe.
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
"""Minimum length of a secret; shorter values could be ordinary words."""
_SECRET_NAME = re.compile(r"KEY|TOKEN|PASSWORD|SECRET")
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,127}$")]
RunName = Annotated[str, StringConstraints(pattern=r"^[^/\\\x00-\x1f]{1,128}$")]
Tag = Annotated[str, StringConstraints(pattern=r"^[^\x00]{1,64}$")]


class TrackedRun(Section):
    """A run's place at a tracker."""

    project: Name
    name: RunName | None = Field(
        None, description="name of the run; default: the name of its folder, which is a job's id"
    )


class WandbRun(TrackedRun):
    """A run's place at Weights & Biases, in the form of OpenAI's integration."""

    entity: Name | None = Field(None, description="user or team; default: the owner of the API key")
    tags: list[Tag] | None = Field(None, max_length=32)


class MLflowRun(TrackedRun):
    """A run's place at MLflow; the project becomes the MLflow experiment."""

    project: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9/][A-Za-z0-9 ._/@-]{0,127}$")]


class TensorBoardTracker(Section):
    """Event files in the run's folder, under tensorboard/."""

    type: Literal["tensorboard"] = "tensorboard"


class WandbTracker(WandbRun):
    """Weights & Biases."""

    type: Literal["wandb"] = "wandb"


class TrackioTracker(TrackedRun):
    """Trackio, locally or on a server (TRACKIO_SERVER_URL)."""

    type: Literal["trackio"] = "trackio"


class MLflowTracker(MLflowRun):
    """MLflow; without MLFLOW_TRACKING_URI, its files are in the run's folder."""

    type: Literal["mlflow"] = "mlflow"


Tracker = Annotated[
    TensorBoardTracker | WandbTracker | TrackioTracker | MLflowTracker, Field(discriminator="type")
]


def each_once(trackers: list[Any]) -> list[Any]:
    """`trackers` (objects with a `type`). Raises ValueError if two have the same type."""
    types = [tracker.type for tracker in trackers]
    if twice := sorted({name for name in types if types.count(name) > 1}):
        raise ValueError(f"expected each tracker once, found {', '.join(twice)} twice")
    return trackers


def installed(tracker: str) -> bool:
    """Whether the tracker's package can be imported; an unrelated folder with that name does not count."""
    spec = importlib.util.find_spec(tracker)
    return spec is not None and spec.origin is not None


def how_to_install(tracker: str) -> str:
    """The command that installs the tracker's package."""
    return extras.how_to_install("trackio" if tracker == "trackio" else "trackers")


def without_secrets(text: str) -> str:
    """`text` without credentials in URLs, and without values of environment variables that are named like secrets."""
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name.upper()) and len(value) >= SECRET_LENGTH:
            text = text.replace(value, "***")
    return _URL_CREDENTIALS.sub("***@", text)
