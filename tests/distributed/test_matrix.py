"""Two processes learn, evaluate and save what one does, however the model is sharded.

On a CPU over gloo; FSDP2 through a shim, as accelerate takes it for GPUs alone (`tests.distributed.worker`).
"""

from pathlib import Path

import pytest
import torch

from tests.distributed.launching import METHODS, STEPS, Run, build_inputs, launch, write_recipe

CONFIGS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
SHARDS_WEIGHTS = {"zero3", "fsdp2"}
KINDS = ("lora", "full")
SHORT = {"ddp": [("f_dpo", "full")], "zero3": [("sinkd", "lora")]}
EVERYTHING = [(method, kind) for method in METHODS for kind in KINDS]


class Lab:
    """Runs by configuration, method and kind; what is missing is launched together."""

    def __init__(self, folder: Path) -> None:
        self._folder = build_inputs(folder)
        self._output = ""

    def run(self, config: str, wanted: list[tuple[str, str]], method: str, kind: str) -> Run:
        """One run; the first that asks makes those of `wanted` too."""
        (self._folder / config).mkdir(exist_ok=True)
        missing = [one for one in wanted if not self._path(config, *one).exists()]
        if missing:
            recipes = [
                write_recipe(self._folder, self._path(config, *one), one[0], lora=one[1] == "lora")
                for one in missing
            ]
            self._output = launch(
                config, recipes, processes=1 if config == "single" else 2, timeout=1500
            ).stdout
        found = Run(self._path(config, method, kind))
        assert (found.folder / "result.json").exists(), self._output[-4000:]
        return found

    def _path(self, config: str, method: str, kind: str) -> Path:
        return self._folder / config / f"{method}-{kind}"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("matrix"))


def check(lab: Lab, config: str, wanted: list[tuple[str, str]], method: str, kind: str) -> None:
    """Losses, evaluations and saved weights of two processes are one's, and each holds its share."""
    one, two = lab.run("single", wanted, method, kind), lab.run(config, wanted, method, kind)
    assert len(two.losses()) == STEPS
    assert two.losses() == pytest.approx(one.losses(), rel=1e-5)
    assert len(two.held_out()) == len(one.held_out()) == 2
    for found, expected in zip(two.logs(), one.logs(), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert two.weights().keys() == one.weights().keys()
    for name, weight in one.weights().items():
        assert torch.dist(two.weights()[name], weight) <= 1e-4 * weight.norm(), name
    (alone,) = one.ranks()
    assert [rank["world_size"] for rank in two.ranks()] == [2, 2]
    for rank in two.ranks():
        optimizer, parameters = (rank[name] / alone[name] for name in ("optimizer_bytes", "parameter_bytes"))
        assert optimizer == pytest.approx(1 if config == "ddp" else 0.5, rel=0.01)
        assert parameters == pytest.approx(0.5 if config in SHARDS_WEIGHTS else 1, rel=0.01)


@pytest.mark.parametrize("config", SHORT)
def test_two_processes_do_what_one_does(lab: Lab, config: str) -> None:
    for method, kind in SHORT[config]:
        check(lab, config, SHORT[config], method, kind)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_whole_matrix(lab: Lab, config: str, method: str, kind: str) -> None:
    check(lab, config, EVERYTHING, method, kind)
