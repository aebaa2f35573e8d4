"""Devices: the table, this machine, and what nvidia-smi may say."""

import subprocess
from typing import Any

import psutil
import pytest

from alignkit.estimate import at_hand, devices


def test_every_device_has_less_to_use_than_it_has() -> None:
    for name in devices.names():
        device = devices.get(name)
        assert 0 < device.usable <= device.memory
        assert device.rate(2) >= device.rate(4) > 0


def test_the_cpu_is_this_machine() -> None:
    found = devices.get("CPU")
    assert found.memory == psutil.virtual_memory().total
    assert found.fp32 > 1e9
    assert not found.is_gpu


@pytest.mark.parametrize(
    ("answer", "rates", "gib"),
    [
        ("NVIDIA H100 80GB HBM3, 81559\nNVIDIA H100 80GB HBM3, 81559\n", "h100", 79.6),
        ("NVIDIA A100-SXM4-40GB, 40960\n", "a100-40gb", 40),
        ("NVIDIA GeForce RTX 4090, 24564\n", "rtx4090", 24),
        ("NVIDIA Something New, 16384\n", "t4", 16),
    ],
)
def test_a_gpu_is_recognised(monkeypatch: pytest.MonkeyPatch, answer: str, rates: str, gib: float) -> None:
    def run(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], 0, stdout=answer)

    monkeypatch.setattr("alignkit.estimate.devices.subprocess.run", run)
    found = at_hand()
    assert found.bf16 == devices.get(rates).bf16
    assert found.memory / 2**30 == pytest.approx(gib, abs=0.1)
    assert found.name == answer.split(",", maxsplit=1)[0]


@pytest.mark.parametrize("answer", ["", "No devices were found\n", "[N/A], [N/A]\n"])
def test_without_a_gpu_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    def run(*_: Any, **__: Any) -> Any:
        return subprocess.CompletedProcess([], 0, stdout=answer)

    monkeypatch.setattr("alignkit.estimate.devices.subprocess.run", run)
    assert at_hand().name == "cpu"
