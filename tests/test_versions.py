"""Versions outside the tested ranges give one warning that names them."""

import warnings
from importlib.metadata import PackageNotFoundError

import pytest

from alignkit import versions
from alignkit.versions import UntestedVersionWarning, warn_if_untested

REQUIRED = [
    "trl<1.17,>=1.16",
    "transformers<5.20,>=5.16.1",
    "torch<2.15,>=2.13",
    "rich<16,>=13.8",
    'ray>=2.60; extra == "ray"',
]
FITTING = {"trl": "1.16.0", "transformers": "5.19.0", "torch": "2.13.0+cpu", "rich": "1"}


def told(monkeypatch: pytest.MonkeyPatch, **installed: str) -> list[str]:
    """The warnings about an environment that differs from a fitting one in these versions."""
    found = FITTING | installed

    def version(name: str) -> str:
        if name not in found or found[name] == "absent":
            raise PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(versions, "requires", lambda _: REQUIRED)
    monkeypatch.setattr(versions, "version", version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_untested()
    assert all(warning.category is UntestedVersionWarning for warning in caught)
    return [str(warning.message) for warning in caught]


def test_tested_versions_are_silent_and_local_builds_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(monkeypatch) == []


def test_one_warning_names_every_package_its_version_and_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    (message,) = told(monkeypatch, trl="1.20.1", transformers="5.15.0")
    assert message == (
        "alignkit is not tested with these versions, which may fail or train differently: "
        "trl 1.20.1, tested >=1.16,<1.17; transformers 5.15.0, tested >=5.16.1,<5.20"
    )


def test_the_upper_bound_is_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    (message,) = told(monkeypatch, torch="2.15.0")
    assert "torch 2.15.0, tested >=2.13,<2.15" in message


@pytest.mark.parametrize("version", ["absent", "a build of ours"])
def test_what_cannot_be_compared_is_passed_over(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    assert told(monkeypatch, trl=version) == []


def test_a_tree_that_is_not_installed_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(versions, "requires", requires)
    warn_if_untested()


def test_only_the_first_process_of_a_machine_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert told(monkeypatch, trl="1.20.1") == []
