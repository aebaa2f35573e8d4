"""A missing optional package is one sentence that says what to install."""

import importlib.util
import sys
from pathlib import Path

import pytest

from alignkit import extras
from alignkit.errors import AlignkitError
from alignkit.launch import require_configuration
from alignkit.models.importing import _dequantise
from alignkit_server.executors.ray import entry
from alignkit_server.executors.ray.submission import Order, Submission

ORDER = Order(nodes=2, gpus=1, cpus=1, accelerate_config=None, storage=None, grace=1.0, resume=False)


def hide(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Make a module look as if it were not installed, to imports and to `find_spec`."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else find_spec(name))
    monkeypatch.setitem(sys.modules, module, None)


def test_an_import_that_fails_names_the_extra() -> None:
    with pytest.raises(AlignkitError) as caught, extras.needed("serve", purpose="alignkit serve"):
        import no_such_package.module  # noqa: F401
    assert str(caught.value) == (
        "alignkit serve needs the package no_such_package, which is not installed: pip install 'alignkit[serve]'"
    )


def test_an_import_of_alignkits_own_that_fails_is_a_defect() -> None:
    with pytest.raises(ModuleNotFoundError), extras.needed("serve", purpose="alignkit serve"):
        import alignkit.no_such_module  # noqa: F401


def test_an_installed_package_is_let_through() -> None:
    extras.require("pytest", extra="dev", purpose="testing")


def test_zero_without_deepspeed_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "deepspeed")
    file = tmp_path / "zero3.yaml"
    file.write_text("distributed_type: DEEPSPEED\n")
    with pytest.raises(
        AlignkitError, match=r"zero3.yaml needs the package deepspeed.*'alignkit\[deepspeed\]'"
    ):
        require_configuration(file)


def test_a_gguf_model_without_gguf_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "gguf")
    with pytest.raises(AlignkitError, match=r"converting a.gguf needs the package gguf.*'alignkit\[gguf\]'"):
        _dequantise(tmp_path / "a.gguf")


def test_several_nodes_without_ray_end_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "alignkit_server.executors.ray.several", raising=False)
    Submission(tmp_path, 1, ORDER).save()
    monkeypatch.setattr(sys, "argv", ["entry", str(tmp_path), "1"])
    assert entry.main() == 2
    assert "a run over several nodes needs the package ray" in capsys.readouterr().out
