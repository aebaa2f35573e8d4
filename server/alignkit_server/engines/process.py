"""A child process that can always be ended with all its descendants, by its own server or by the next one.

Every process carries a random token in its environment, which its children inherit. The token finds all of them,
even if the first one is gone, one moved to another session, or process ids were reused.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import subprocess
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from alignkit.disk import put
from alignkit.launch import interrupt

TOKEN_VARIABLE = "ALIGNKIT_PROCESS_TOKEN"  # noqa: S105 - the variable's name
POLL_SECONDS = 0.05
KILL_SECONDS = 10.0
TAKING_SECONDS = 120.0
"""How long a waiting process may take to accept a run; it may still be loading its model."""
LOG_TAIL_BYTES = 64 * 1024

_PASSED = frozenset(
    {"PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LD_LIBRARY_PATH", "XDG_CACHE_HOME", "HF_HOME"}
)
_PASSED_PREFIXES = (
    "LC_",
    "CUDA_",
    "NVIDIA_",
    "HIP_",
    "ROCR_",
    "NCCL_",
    "OMP_",
    "MKL_",
    "VLLM_",
    "TRITON_",
    "TORCH",
)
_NEVER_PASSED = frozenset({"VLLM_API_KEY", "VLLM_PORT"})

logger = logging.getLogger(__name__)


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The few variables of this process that a child needs, plus `extra`; never a secret of this process."""
    passed = {
        name: value
        for name, value in os.environ.items()
        if (name in _PASSED or name.startswith(_PASSED_PREFIXES)) and name not in _NEVER_PASSED
    }
    return passed | dict(extra)


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies a child and the server that started it, so that reused process ids are not mistaken for them."""

    token: str
    pid: int
    create_time: float
    port: int | None
    owner_pid: int
    owner_create_time: float

    def save(self, path: Path) -> None:
        """Write to `path`, whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> "Identity | None":
        """The identity recorded in `path`, or None if it is missing or unreadable."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def owned_by_another(self) -> bool:
        """Whether the server that started it is another process that still runs."""
        return self.owner_pid != os.getpid() and runs(self.owner_pid, self.owner_create_time)

    def owned_by_us(self) -> bool:
        """Whether this process started it, as opposed to an earlier one with the same process id."""
        return self.owner_pid == os.getpid() and runs(self.owner_pid, self.owner_create_time)


def give_way(pid: int, nice: int) -> None:
    """Lower the CPU priority of a child that has just begun, and so of all that it starts.

    Where the kernel groups tasks by session, a niceness counts within the session only, and the session's own is set.
    """
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice), encoding="ascii")


class ManagedProcess:
    """A child in its own session, with a log file and an identity file. Thread-safe."""

    def __init__(
        self,
        identity: Identity,
        *,
        log_path: Path,
        identity_path: Path,
        child: subprocess.Popen[bytes] | None,
    ) -> None:
        """Use `start` or `attach` instead."""
        self.identity = identity
        self.log_path = log_path
        self._identity_path = identity_path
        self._child = child

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        *,
        log_path: Path,
        identity_path: Path,
        environment: Mapping[str, str],
        port: int | None = None,
        cwd: Path | None = None,
        waits: bool = False,
        nice: int = 0,
    ) -> "ManagedProcess":
        """Start `command` with exactly `environment`; the log of an earlier run is kept as `<log>.1`.

        With `waits`, the process reads a line of its standard input, which `hand_over` writes. It is `nice` by that
        much more than this server, so that requests are answered while it wants all cores. Raises OSError if the
        program cannot be started.
        """
        _begin_log(log_path)
        owner = psutil.Process()
        identity = Identity(secrets.token_hex(16), 0, 0.0, port, owner.pid, owner.create_time())
        # Recorded before the child exists: even a server killed in the next lines leaves no unrecorded child.
        identity.save(identity_path)
        marked = {**environment, **_marks(identity.token)}
        try:
            with log_path.open("ab") as log:  # so that it may be cut while it is written
                child = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE if waits else subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=marked,
                    cwd=cwd,
                    start_new_session=True,
                )
        except OSError:
            identity_path.unlink(missing_ok=True)
            raise
        give_way(child.pid, nice)
        identity = Identity(
            **asdict(identity) | {"pid": child.pid, "create_time": psutil.Process(child.pid).create_time()}
        )
        identity.save(identity_path)
        process = cls(identity, log_path=log_path, identity_path=identity_path, child=child)
        if child.stdin is not None:
            weakref.finalize(process, child.stdin.close)
        return process

    @classmethod
    def attach(cls, identity_path: Path, *, log_path: Path) -> "ManagedProcess | None":
        """The process recorded in `identity_path`, alive or not; None if none is recorded."""
        identity = Identity.load(identity_path)
        if identity is None:
            return None
        return cls(identity, log_path=log_path, identity_path=identity_path, child=None)

    def hand_over(
        self, run: Callable[[dict[str, str]], bytes], *, log_path: Path, identity_path: Path
    ) -> "ManagedProcess":
        """Make a waiting process that of a run, with the run's log and identity file.

        `run` returns the line that the process reads, given the variables that mark it and its children. The process
        accepts by opening the log. If it does not, it is ended, the identity file is removed, and OSError is raised.
        """
        if self._child is None or self._child.stdin is None:
            raise OSError("this process waits for no run")
        _begin_log(log_path)
        # Recorded as not started until it accepts: a server that finds this ends it and starts the run anew.
        Identity(**asdict(self.identity) | {"pid": 0, "create_time": 0.0}).save(identity_path)
        try:
            with self._child.stdin as line:
                line.write(run(_marks(self.identity.token)))
            self._wait_until_taken(log_path)
        except OSError:
            identity_path.unlink(missing_ok=True)
            self.terminate(0)
            raise
        self.identity.save(identity_path)
        for left in (self._identity_path, self.log_path):
            left.unlink(missing_ok=True)
        return ManagedProcess(
            self.identity, log_path=log_path, identity_path=identity_path, child=self._child
        )

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def port(self) -> int | None:
        return self.identity.port

    @property
    def returncode(self) -> int | None:
        """The exit status after it ended (negative: the signal), else None; always None for an attached process."""
        return self._child.poll() if self._child else None

    def alive(self) -> bool:
        """Whether the process itself runs; false for a zombie, and for another process with its id."""
        if self._child is not None:
            return self._child.poll() is None
        return runs(self.identity.pid, self.identity.create_time)

    def interrupt(self) -> None:
        """Ask the training processes it launched to save and exit; see `alignkit.launch.interrupt`."""
        if self.alive():
            interrupt(self.identity.pid)

    def terminate(self, grace: float) -> None:
        """Stop it and all its descendants: SIGTERM, and SIGKILL after `grace` seconds. Removes its identity file."""
        members = self._members()
        _signal(members, kill=False)
        self._wait_for(members, grace)
        deadline = time.monotonic() + KILL_SECONDS
        while members := self._members():
            if time.monotonic() > deadline:
                # Not even SIGKILL ends a process stuck in the kernel; its identity file stays for the next start.
                logger.error("processes %s did not end after SIGKILL", [process.pid for process in members])
                return
            _signal(members, kill=True)
            self._wait_for(members, 1.0)
        if self._child is not None:
            self._child.wait()
        self._identity_path.unlink(missing_ok=True)

    def last_lines(self, count: int) -> list[str]:
        """The last `count` non-empty lines of the log."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except FileNotFoundError:
            return []
        return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]

    def _wait_until_taken(self, log_path: Path) -> None:
        deadline = time.monotonic() + TAKING_SECONDS
        while not log_path.exists():
            if not self.alive() or time.monotonic() > deadline:
                raise OSError("the process did not accept the run")
            time.sleep(POLL_SECONDS)

    def _members(self) -> list[psutil.Process]:
        """Every living process with the token."""
        members = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(TOKEN_VARIABLE) == self.identity.token and _living(process):
                    members.append(process)
        if not members and runs(self.pid, self.identity.create_time):  # as it ends, it has no environment
            members.append(psutil.Process(self.pid))
        return members

    def _wait_for(self, members: list[psutil.Process], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._child is not None:
                self._child.poll()  # reap it, or it would stay a zombie
            if not any(_living(process) for process in members):
                return
            time.sleep(POLL_SECONDS)


def _marks(token: str) -> dict[str, str]:
    """The variables by which a process and its children are found."""
    # SPT_NOENV: a program that sets its title (vLLM does) would otherwise overwrite the token.
    return {TOKEN_VARIABLE: token, "SPT_NOENV": "1"}


def _begin_log(path: Path) -> None:
    """Make room for a new log; an earlier one is kept as `<log>.1`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.replace(path.with_name(f"{path.name}.1"))


def _living(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def runs(pid: int, create_time: float) -> bool:
    """Whether the process with this id and creation time still runs."""
    try:
        process = psutil.Process(pid)
        # A second of tolerance: the time is derived from the clock, which may have been adjusted.
        return abs(process.create_time() - create_time) < 1 and _living(process)
    except (psutil.Error, ValueError):
        return False


def _signal(members: list[psutil.Process], *, kill: bool) -> None:
    for process in members:
        with contextlib.suppress(psutil.Error):
            if kill:
                process.kill()
            else:
                process.terminate()


def free_port(host: str = "127.0.0.1") -> int:
    """A free port of `host` ("" for all addresses)."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
