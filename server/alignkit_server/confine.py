"""Starts a command that sees only named parts of the home: `python confine.py --home … -- COMMAND`.

This is a separate program, which imports nothing of this package.

In its own user and mount namespace, an empty file system covers the home, and what the command needs is mounted back
into it. The process keeps its user, and nothing outside the home changes.
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
"""Mount options of the file system that covers the home; it holds only mount points."""


def confined(
    command: Sequence[str], *, home: Path, reads: Iterable[Path], writes: Iterable[Path] = ()
) -> list[str]:
    """The command that runs `command` with a home in which it may write only `writes` and read only `reads`."""
    inside = sorted({str(path) for path in reads if path.is_relative_to(home)})
    options = [part for path in inside for part in ("--read", path)]
    options += [part for path in writes for part in ("--write", str(path))]
    return [sys.executable, __file__, "--home", str(home), *options, "--", *command]


def possible() -> bool:
    """Whether the system allows this user to create namespaces; containers often do not."""
    asked = [sys.executable, __file__, "--probe"]
    return subprocess.run(asked, check=False, capture_output=True).returncode == 0


def refusal(setting: str) -> str:
    """The sentence about a setting, by its variable, that asks for more than this system gives."""
    return (
        f"{setting}: this system lets no process create user and mount namespaces; allow them, or set "
        f"{setting}=false"
    )


def main(arguments: Sequence[str]) -> None:
    """Confine this process, then become the command. Raises OSError if the system does not allow it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--write", type=Path, action="append", default=[])
    parser.add_argument("--read", type=Path, action="append", default=[])
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    here = Path.cwd()
    _namespaces()
    # Opened before the home is covered, because then their names no longer lead to them.
    held = [
        (path, os.open(path, os.O_PATH), path not in options.write)
        for path in [*options.write, *options.read]
    ]
    _mount(b"none", b"/", None, MS_REC | MS_PRIVATE)
    _mount(b"tmpfs", os.fsencode(options.home), b"tmpfs", 0, SIZE)
    for path, descriptor, only_reads in held:
        source = f"/proc/self/fd/{descriptor}".encode()
        if path.exists():  # inside another one, which is mounted already
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
    """Enter a new user and mount namespace in which this process keeps its user."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", CLONE_NEWUSER | CLONE_NEWNS)
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        Path("/proc/self", name).write_text(content, encoding="ascii")


def _try_read_only(path: Path) -> None:
    """Make a mount read-only. Leaves it to file modes if the volume has options that a namespace cannot remove."""
    try:
        _mount(b"none", os.fsencode(path), None, MS_BIND | MS_REMOUNT | MS_RDONLY)
    except OSError:
        return


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    _call("mount", source, target, kind, ctypes.c_ulong(flags), data)


def _call(name: str, *arguments: object) -> None:
    """Call a function of the C library. Raises OSError if it fails."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        _namespaces()
    else:
        main(sys.argv[1:])
