"""Which Ray job the run of a folder is, told in the folder to both sides: the server that submits and the nodes.

ray.json          the last submission, written before Ray hears of it
ray/pause         the id of the submission that is to save its state and end
ray/alive-I-R     counted up by the supervisor of process group R of submission I, for as long as it may still write
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from alignkit.run.folder import write_json


@dataclass(frozen=True, slots=True)
class Order:
    """What a run is given: nodes, GPUs and CPUs of each; accelerate's configuration, a path on the nodes; where its
    checkpoints are copied; seconds to save when it is ended; whether it goes on from its last checkpoint."""

    nodes: int
    gpus: int
    cpus: int
    accelerate_config: str | None
    storage: str | None
    grace: float
    resume: bool


@dataclass(frozen=True, slots=True)
class Submission:
    """One submission of a folder's run; the numbers of a folder only grow."""

    folder: Path
    number: int
    order: Order
    ended: bool = False

    @property
    def id(self) -> str:
        """Ray's submission id."""
        return f"{self.folder.name}-{self.number}"

    def save(self) -> None:
        """Make it the folder's last one."""
        value = {"number": self.number, "ended": self.ended, "order": asdict(self.order)}
        write_json(_record(self.folder), value)

    def current(self) -> bool:
        """Whether it is still the one that may run; taken for granted while the folder cannot be read."""
        try:
            found = read(self.folder)
        except OSError:
            return True
        return found is None or (found.number == self.number and not found.ended)

    def end(self) -> None:
        """Record that it is over, unless another one has followed."""
        found = read(self.folder)
        if found is not None and found.number == self.number:
            Submission(self.folder, self.number, self.order, ended=True).save()

    def ask_to_pause(self) -> None:
        """Let its run save its state and end."""
        marks(self.folder).mkdir(exist_ok=True)
        (marks(self.folder) / "pause").write_text(self.id, encoding="utf-8")

    def pausing(self) -> bool:
        """Whether that was asked."""
        try:
            return (marks(self.folder) / "pause").read_text(encoding="utf-8") == self.id
        except OSError:
            return False


def read(folder: Path) -> Submission | None:
    """The last submission of the folder's run, or None where there was none."""
    try:
        value = json.loads(_record(folder).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Submission(folder, value["number"], Order(**value["order"]), value["ended"])


def begin(folder: Path, order: Order) -> Submission:
    """The submission that is under way, or the next one: the same whoever asks, and however often."""
    last = read(folder)
    if last is not None and not last.ended:
        return last
    submission = Submission(folder, last.number + 1 if last else 1, order)
    submission.save()
    return submission


def marks(folder: Path) -> Path:
    """Where the small files lie by which both sides talk."""
    return folder / "ray"


def _record(folder: Path) -> Path:
    return folder / "ray.json"
