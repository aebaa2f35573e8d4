"""The environment of training processes: where they import their packages from."""

import os
from pathlib import Path

import pytest

from alignkit_server.executors.environment import common_environment


def test_a_run_imports_from_where_the_server_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([".", "server", "", "/opt/packages"]))
    expected = os.pathsep.join([str(tmp_path), str(tmp_path / "server"), "/opt/packages"])
    assert common_environment()["PYTHONPATH"] == expected, "absolute, since a run has a folder of its own"
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in common_environment()
