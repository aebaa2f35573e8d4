"""Starts a command that sees of the home only what it is given: `python confine.py --home … -- COMMAND`.

A program of its own, which imports nothing of this package.

In a user and a mount namespace of its own the home is replaced by an empty file system, into which the run's folder
and what it reads are mounted back. The process keeps its user, so other programs' files are as they were.
"""

import argparse
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_RDONLY = 0x1
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000
SIZE = b"mode=0700,size=1m"
"""Of the file system in the home's place: it holds mount points only."""


def confined(
    command: Sequence[str], *, home: Path, writes: Path, reads: Iterable[Path], python: str = sys.executable
) -> list[str]:
    """The command that runs `command` with `writes`, and to read `reads`, as all that there is in `home`."""
    inside = sorted({str(path) for path in reads if path.is_relative_to(home)})
    options = [part for path in inside for part in ("--read", path)]
    return [python, __file__, "--home", str(home), "--write", str(writes), *options, "--", *command]


def possible() -> bool:
    """Whether this system lets this user have namespaces of its own: containers often do not."""
    asked = [sys.executable, __file__, "--probe"]
    return subprocess.run(asked, check=False, capture_output=True).returncode == 0


def main(arguments: Sequence[str]) -> None:
    """Confine this process, then become the command. Raises OSError where the system does not let it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--write", type=Path, required=True)
    parser.add_argument("--read", type=Path, action="append", default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    here = Path.cwd()
    _namespaces()
    # Held open in the new namespace, since their names lead nowhere once the home is covered.
    held = [
        (path, os.open(path, os.O_PATH), path != options.write) for path in [options.write, *options.read]
    ]
    _mount(b"none", b"/", None, MS_REC | MS_PRIVATE)
    _mount(b"tmpfs", os.fsencode(options.home), b"tmpfs", 0, SIZE)
    for path, descriptor, only_reads in held:
        source = f"/proc/self/fd/{descriptor}".encode()
        if path.exists():  # inside of another one that is mounted already
            continue
        if Path(os.fsdecode(source)).is_dir():
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        _mount(source, os.fsencode(path), None, MS_BIND | MS_REC)
        if only_reads:
            _try_read_only(path)
    for _, descriptor, _ in held:
        os.close(descriptor)
    os.chdir(here)
    os.execvp(options.command[0], options.command)  # noqa: S606 - no shell is wanted


def _namespaces() -> None:
    """Enter a user and a mount namespace in which this process is the user that it was."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path("/proc/self", name).write_text(content, encoding="ascii")


def _try_read_only(path: Path) -> None:
    """Where the volume has options that a namespace may not take away this fails, and the file's mode decides."""
    try:
        _mount(b"none", os.fsencode(path), None, MS_BIND | MS_REMOUNT | MS_RDONLY)
    except OSError:
        return


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    _call("mount", source, target, kind, ctypes.c_ulong(flags), data)


def _call(name: str, *arguments: object) -> None:
    """A function of the C library. Raises OSError where it fails."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        _namespaces()
    else:
        main(sys.argv[1:])
