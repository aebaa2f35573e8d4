"""Before the first step, two processes that share a model's weights compare its fused head with its own logits."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from alignkit.run.folder import RunFolder
from tests.distributed.heads import ClampedLlama, FadingLlama, become, log_probs_of
from tests.distributed.launching import STEPS, build_inputs, launch, write_recipe

CONFIGS = ("ddp", "zero3", "fsdp2")
WRONG = {"fading": FadingLlama, "clamped": ClampedLlama}
REFUSALS = {
    "fading": r"FadingLlama: the fused head's log-probs differ from the model's own by \d\S* nats, expected at most "
    r"\d\S* in float32, so this model cannot be trained",
    "clamped": "ClampedLlama does more to its logits than scale and softly cap them",
}
SECONDS = 600
"""For all runs of a configuration; one that waits for its partner takes longer."""


@dataclass(frozen=True)
class Compared:
    """What the two processes of a run compared, and how the run ended."""

    folder: Path
    output: str

    @property
    def ranks(self) -> list[dict[str, Any]]:
        """What each kept; see `tests.distributed.heads`."""
        files = sorted(self.folder.parent.glob(f"{self.folder.name}.head-*.json"))
        assert len(files) == 2, self.output[-4000:]
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    @property
    def result(self) -> dict[str, Any]:
        """The run's."""
        found = RunFolder(self.folder).read_result()
        assert found is not None, self.output[-4000:]
        return found


class Lab:
    """Runs by configuration, launched together: two of each kind of wrong model, two of sound ones."""

    def __init__(self, folder: Path) -> None:
        self._sound = build_inputs(folder / "sound")
        self._wrong = {name: build_inputs(folder / name) for name in WRONG}
        for name, kind in WRONG.items():
            become(self._wrong[name] / "model", kind)
            become(self._wrong[name] / "teacher", kind)
        self._launched: dict[str, str] = {}

    def run(self, config: str, name: str) -> Compared:
        """The run `name` under `config`; what is named `…-teacher` distils."""
        folder = self._sound / config
        if config not in self._launched:
            folder.mkdir()
            recipes = self._recipes(folder)
            self._launched[config] = launch(
                config, [f"{path}:head" for path in recipes], timeout=SECONDS
            ).stdout
        return Compared(folder / name, self._launched[config])

    def model(self, name: str) -> LlamaForCausalLM:
        """A sound one, whole."""
        return LlamaForCausalLM.from_pretrained(self._sound / name)

    def _recipes(self, folder: Path) -> list[Path]:
        """The sound ones last, so that no process has ended when another still has to say why it failed."""
        wrong = [
            write_recipe(self._wrong[name], folder / name, method, kind=kind)
            for name, method, kind in (("fading", "supervised", "full"), ("clamped", "f_dpo", "lora"))
        ]
        teachers = [
            write_recipe(
                self._sound,
                folder / f"{name}-teacher",
                "f_kd",
                options={"teacher": {"path": str(path / "teacher")}},
            )
            for name, path in (*self._wrong.items(), ("sound", self._sound))
        ]
        return [*wrong, *teachers, write_recipe(self._sound, folder / "sound", "f_dpo", kind="full")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("heads"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["sound", "sound-teacher"])
def test_a_sound_head_is_compared_and_trains(lab: Lab, config: str, name: str) -> None:
    """Every process compared the log-probs that the whole model gives alone, before its first step, and trained."""
    sides = {"student": "model", "teacher": "teacher"} if name == "sound-teacher" else {None: "model"}
    run = lab.run(config, name)
    for rank in run.ranks:
        assert rank["error"] is None
        assert rank["steps"] == STEPS
        assert [(one["side"], one["fused"], one["steps"]) for one in rank["forwards"]] == [
            (side, fused, 0) for side in sides for fused in (False, True)
        ]
        for one in rank["forwards"]:
            ids = torch.tensor(one["ids"])
            with torch.no_grad():
                expected = log_probs_of(lab.model(sides[one["side"]])(ids).logits, ids)
            torch.testing.assert_close(torch.tensor(one["log_probs"]), expected, atol=1e-4, rtol=0)
    assert run.result["status"] == "succeeded"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", ["fading", "clamped", "fading-teacher", "clamped-teacher"])
def test_a_wrong_head_ends_every_process_before_the_first_step(lab: Lab, config: str, name: str) -> None:
    refusal = REFUSALS[name.removesuffix("-teacher")]
    run = lab.run(config, name)
    for rank in run.ranks:
        kind, message = rank["error"]
        assert kind == "ModelError"
        assert rank["steps"] == 0
        assert re.fullmatch(refusal, message), message
    assert run.result["status"] == "failed"
    assert run.result["error"]["code"] == "invalid_recipe"
    assert re.fullmatch(refusal, run.result["error"]["message"])
    assert not list(run.folder.glob("checkpoints/*"))
