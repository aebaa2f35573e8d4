"""The link between a run folder and its Ray job, kept as files in the folder for the server and the nodes.

ray.json          the last submission, written before it is submitted to Ray
ray/pause         the id of the submission that must save its state and exit
ray/alive-I-R     counted up by the supervisor of process group R of submission I, for as long as it may still write
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from alignkit.run.folder import write_json


@dataclass(frozen=True, slots=True)
class Order:
    """The options of a run: nodes; GPUs and CPUs per node; the path on the nodes of accelerate's configuration; the
    storage of its checkpoints; seconds to save when it is stopped; whether it resumes from its last checkpoint.
    """

    nodes: int
    gpus: int
    cpus: int
    accelerate_config: str | None
    storage: str | None
    grace: float
    resume: bool


@dataclass(frozen=True, slots=True)
class Submission:
    """One submission of a folder's run; the numbers within a folder only grow."""

    folder: Path
    number: int
    order: Order
    ended: bool = False

    @property
    def id(self) -> str:
        """Ray's submission id."""
        return f"{self.folder.name}-{self.number}"

    def save(self) -> None:
        """Record it as the folder's last submission."""
        value = {"number": self.number, "ended": self.ended, "order": asdict(self.order)}
        write_json(_record(self.folder), value)

    def current(self) -> bool:
        """Whether this submission may still run; assumed true while the folder cannot be read."""
        try:
            found = read(self.folder)
        except OSError:
            return True
        return found is None or (found.number == self.number and not found.ended)

    def end(self) -> None:
        """Record its end, unless another submission has followed."""
        found = read(self.folder)
        if found is not None and found.number == self.number:
            Submission(self.folder, self.number, self.order, ended=True).save()

    def ask_to_pause(self) -> None:
        """Ask its run to save its state and exit."""
        marks(self.folder).mkdir(exist_ok=True)
        (marks(self.folder) / "pause").write_text(self.id, encoding="utf-8")

    def pausing(self) -> bool:
        """Whether `ask_to_pause` was called for this submission."""
        try:
            return (marks(self.folder) / "pause").read_text(encoding="utf-8") == self.id
        except OSError:
            return False


def read(folder: Path) -> Submission | None:
    """The last submission of the folder's run, or None if it was never submitted."""
    try:
        value = json.loads(_record(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Submission(folder, value["number"], Order(**value["order"]), value["ended"])


def begin(folder: Path, order: Order) -> Submission:
    """The current submission, or a new one if it has ended. Idempotent."""
    last = read(folder)
    if last is not None and not last.ended:
        return last
    submission = Submission(folder, last.number + 1 if last else 1, order)
    submission.save()
    return submission


def marks(folder: Path) -> Path:
    """The folder of the small files through which server and nodes communicate."""
    return folder / "ray"


def _record(folder: Path) -> Path:
    return folder / "ray.json"
