"""`import alignkit` is cheap, and its names are there when they are asked for."""

import subprocess
import sys

import pytest

import alignkit


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_importing_alignkit_imports_no_other_project() -> None:
    before, after = modules_after(""), modules_after("import alignkit")
    top = {name.partition(".")[0] for name in after - before}
    assert top <= {"alignkit"} | set(sys.stdlib_module_names)


def test_the_command_starts_without_the_frameworks() -> None:
    loaded = modules_after("import alignkit.cli")
    assert not loaded & {"torch", "transformers", "trl", "pydantic", "fastapi", "alignkit_server", "openai"}


@pytest.mark.parametrize("name", alignkit.__all__)
def test_an_exported_name_is_found_and_listed(name: str) -> None:
    assert getattr(alignkit, name) is not None
    assert name in dir(alignkit)


def test_trainers_come_from_the_top() -> None:
    from alignkit import FDPOConfig, FDPOTrainer, trainers

    assert (FDPOTrainer, FDPOConfig) == (trainers.FDPOTrainer, trainers.FDPOConfig)


def test_a_name_that_is_not_exported_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'alignkit' has no attribute 'NoSuchTrainer'"):
        alignkit.NoSuchTrainer  # noqa: B018
