"""Two processes learn, evaluate and save what one does, however the model is sharded.

On a CPU over gloo; FSDP2 through a shim, as accelerate takes it for GPUs alone (`tests.distributed.worker`).
"""

from collections.abc import Callable

import pytest

from tests.distributed.lab import CHECKS, Case, Lab
from tests.distributed.launching import METHODS, STEPS, runs_under

CONFIGS = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
SHORT = [Case("f_dpo", "full", tied=True)]
EVERYTHING = [Case(method, kind) for method in METHODS for kind in ("lora", "full", "adapter")]
TIED = [Case(case.method, case.kind, tied=True) for case in EVERYTHING if case.kind != "adapter"]
FURTHER = [Case("f_dpo", "adapter"), Case("d2o", "full"), Case("bd_kd", "lora")]

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("matrix"))


def check(lab: Lab, config: str, wanted: list[Case], case: Case, what: str, record: Record) -> None:
    """One of `CHECKS`; how far the two runs are apart goes into the report that `--junitxml` writes."""
    able = [other for other in wanted if runs_under(other.method, config)]
    if case not in able:
        pytest.skip(f"{case.method} is refused under {config}")
    one, two = lab.run("single", wanted, case), lab.run(config, able, case)
    for name, deviation in CHECKS[what](one, two, config, STEPS).items():
        record(f"{config} {case} {name}", f"{deviation:.1e}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("what", CHECKS)
@pytest.mark.parametrize("case", SHORT, ids=str)
def test_two_processes_do_what_one_does(lab: Lab, case: Case, what: str, record_property: Record) -> None:
    check(lab, "zero3", SHORT, case, what, record_property)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", CHECKS)
@pytest.mark.parametrize("case", EVERYTHING, ids=str)
@pytest.mark.parametrize("config", CONFIGS)
def test_the_whole_matrix(lab: Lab, config: str, case: Case, what: str, record_property: Record) -> None:
    check(lab, config, EVERYTHING, case, what, record_property)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", CHECKS)
@pytest.mark.parametrize("case", TIED, ids=str)
@pytest.mark.parametrize("config", ["zero3", "fsdp2"])
def test_a_head_that_is_the_embedding(
    lab: Lab, config: str, case: Case, what: str, record_property: Record
) -> None:
    check(lab, config, TIED, case, what, record_property)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", CHECKS)
@pytest.mark.parametrize("case", FURTHER, ids=str)
@pytest.mark.parametrize("config", ["zero3_offload", "zero3_multinode"])
def test_offloaded_and_on_two_nodes(
    lab: Lab, config: str, case: Case, what: str, record_property: Record
) -> None:
    """Both nodes are this machine, each with a launcher of its own."""
    check(lab, config, FURTHER, case, what, record_property)
