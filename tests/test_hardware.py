"""What is told of the machine."""

from pathlib import Path

import pytest

from alignkit.hardware import cpu_name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel name\t: A: fast one\nmodel name\t: A: fast one\n", "A: fast one"),
        ("", "riscv64"),
    ],
)
def test_the_processor_has_its_name_or_its_architecture(
    monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert cpu_name() == expected


def test_a_machine_without_proc_has_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert cpu_name() == "arm64"
