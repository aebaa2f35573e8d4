"""The launch command, accelerate's configurations, and processes that do not find each other."""

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from accelerate.commands.config.config_args import load_config_from_file

from alignkit import train
from alignkit.cli import app
from alignkit.errors import AlignkitError, RecipeError
from alignkit.launch import (
    CONFIGURATIONS,
    THREADS_GIVEN,
    Machine,
    launch_command,
    require_configuration,
)

CONFIGS = sorted(CONFIGURATIONS.glob("*.yaml"))


def test_the_number_of_processes_is_the_callers_or_the_configurations() -> None:
    recipe, config = Path("recipe.yaml"), Path("zero3.yaml")
    alone = ["-m", "alignkit.train", "recipe.yaml", "--resume", "seed=1"]
    assert launch_command(recipe, ["seed=1"], resume=True)[1:] == alone
    assert launch_command(recipe, num_processes=1) == launch_command(recipe)
    assert {"--num_processes=2", "--multi_gpu"} <= set(launch_command(recipe, num_processes=2))
    assert not [word for word in launch_command(recipe, config_file=config) if "num_processes" in word]
    given = launch_command(recipe, config_file=config, num_processes=8)
    # Port 0 is a free one: several runs may share a machine.
    assert given[3:7] == ["--config_file=zero3.yaml", "--main_process_port=0", "--num_processes=8", "-m"]


def test_one_of_several_machines_says_which_it_is() -> None:
    machine = Machine(rank=1, total=2, address="192.0.2.7", port=29500)
    place = [
        "--num_machines=2",
        "--machine_rank=1",
        "--main_process_ip=192.0.2.7",
        "--main_process_port=29500",
    ]
    plain = launch_command(Path("recipe.yaml"), num_processes=4, machine=machine)
    assert {*place, "--num_processes=8", "--multi_gpu"} <= set(plain)
    sharded = launch_command(
        Path("recipe.yaml"), config_file=Path("zero3.yaml"), num_processes=4, machine=machine
    )
    assert sharded[3:9] == ["--config_file=zero3.yaml", *place, "--num_processes=8"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_every_configuration(path: Path) -> None:
    config = load_config_from_file(str(path))
    stage = config.deepspeed_config.get("zero_stage") if hasattr(config, "deepspeed_config") else None
    assert stage == (int(path.stem[4]) if path.stem.startswith("zero") else None)
    assert config.mixed_precision == "no"  # the recipe's to say
    assert config.use_cpu is False


def test_a_configuration_that_comes_with_alignkit_goes_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    require_configuration(Path("fsdp2"))
    given = launch_command(Path("recipe.yaml"), config_file=Path("fsdp2"), num_processes=2)
    assert f"--config_file={CONFIGURATIONS / 'fsdp2.yaml'}" in given
    with pytest.raises(AlignkitError, match=r"cannot read zero9: .* or one of ddp, fsdp2, single, zero1, "):
        require_configuration(Path("zero9"))


def test_a_file_of_ones_own_comes_before_one_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fsdp2").write_text("- one")
    with pytest.raises(AlignkitError, match="found list in fsdp2"):
        require_configuration(Path("fsdp2"))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot read"), ("foo: [1", "is not YAML"), ("- one", "expected an accelerate configuration")],
)
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "config.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(AlignkitError, match=f"--config-file: .*{words}"):
        require_configuration(file)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_launcher_leaves_the_last_word_to_the_trainer(tmp_path: Path, processes: int) -> None:
    command = launch_command(tmp_path / "none.yaml", num_processes=processes)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "none.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SimpleNamespace(accelerator=SimpleNamespace(num_processes=1))
    train.require_processes(alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="the launcher started 2 processes, but only 1 train together"):
        train.require_processes(alone)


LAUNCHED = {"ACCELERATE_MIXED_PRECISION": "no"}


@pytest.mark.parametrize(
    ("environment", "takes_all"),
    [
        ({}, True),
        (LAUNCHED | {"OMP_NUM_THREADS": "1"}, True),  # accelerate's own default
        (LAUNCHED | {"OMP_NUM_THREADS": "1", THREADS_GIVEN: "1"}, False),
        ({"OMP_NUM_THREADS": "1"}, False),
        (LAUNCHED | {"OMP_NUM_THREADS": "3"}, False),
    ],
)
def test_a_run_takes_all_cores_unless_the_user_limits_its_threads(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], takes_all: bool
) -> None:
    for name in ("OMP_NUM_THREADS", THREADS_GIVEN, *train.LAUNCHED):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    taken: list[int] = []
    monkeypatch.setattr(train.torch, "set_num_threads", taken.append)
    monkeypatch.setattr(train.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(train.os, "sched_getaffinity", lambda _process: set(range(6)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    train.use_all_cores()
    assert taken == ([3] if takes_all else [])


def test_the_command_takes_accelerates_spelling_too() -> None:
    (option,) = [
        one for one in typer.main.get_command(app).commands["train"].params if one.name == "config_file"
    ]
    assert {"--config-file", "--config_file"} <= set(option.opts)
