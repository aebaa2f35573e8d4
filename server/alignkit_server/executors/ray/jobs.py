"""Client for the needed part of Ray's Jobs API over HTTP, so that the server needs no Ray installation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from alignkit_server.executors.protocol import ExecutorUnavailableError

WAITED_TOO_LONG = "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"
"""Ray's error type for a job that found no room in RAY_JOB_START_TIMEOUT_SECONDS (default 15 minutes)."""

ALIVE = frozenset({"PENDING", "RUNNING"})


@dataclass(frozen=True, slots=True)
class Job:
    """A Ray job's status."""

    status: str
    message: str
    error_type: str | None

    @property
    def alive(self) -> bool:
        """Whether the job runs or waits."""
        return self.status in ALIVE


class RayJobs:
    """The jobs of a cluster. Thread-safe. Calls raise ExecutorUnavailableError if the cluster does not answer."""

    def __init__(self, address: str, *, token: str | None = None, timeout: float = 10.0) -> None:
        """`address` is the URL of the cluster's dashboard, http://host:8265."""
        self._address = address.rstrip("/")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=self._address, headers=headers, timeout=timeout, trust_env=False, follow_redirects=True
        )

    def version(self) -> str:
        """The cluster's Ray version."""
        return str(self._ask("GET", "/api/version").json()["ray_version"])

    def submit(
        self,
        id: str,  # noqa: A002
        entrypoint: str,
        *,
        gpus: int = 0,
        cpus: int = 0,
        environment: Mapping[str, str],
    ) -> None:
        """Submit the job. Idempotent per id.

        Ray answers a second submission with an error, and so does a cluster that started seconds ago. A call
        succeeds if the cluster knows the job afterwards.
        """
        if self.find(id) is not None:
            return
        body = {
            "submission_id": id,
            "entrypoint": entrypoint,
            "entrypoint_num_gpus": gpus,
            "entrypoint_num_cpus": cpus,
            "runtime_env": {"env_vars": dict(environment)},
        }
        try:
            self._ask("POST", "/api/jobs/", body)
        except ExecutorUnavailableError:
            if self.find(id) is None:
                raise

    def find(self, id: str) -> Job | None:  # noqa: A002
        """The job, or None if the cluster does not know it."""
        answer = self._ask("GET", f"/api/jobs/{id}", absent=httpx.codes.NOT_FOUND)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        value = answer.json()
        return Job(value["status"], value.get("message") or "", value.get("error_type"))

    def stop(self, id: str) -> None:  # noqa: A002
        """Ask Ray to stop the job, if it knows it. A PENDING job stays pending."""
        self._ask("POST", f"/api/jobs/{id}/stop", absent=httpx.codes.NOT_FOUND)

    def nodes(self) -> list[dict[str, float]]:
        """Total resources of each living node: GPU, CPU, ..."""
        answer = self._ask("GET", "/api/v0/nodes?limit=10000&detail=true").json()
        nodes = answer["data"]["result"]["result"]
        return [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]

    def _ask(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, absent: int | None = None
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            message = f"The Ray cluster at {self._address} does not answer: {reason}"
            raise ExecutorUnavailableError(message) from error
        if answer.is_success or answer.status_code == absent:
            return answer
        if answer.status_code in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
            reason = "refuses the service's token (ALIGNKIT_RAY__TOKEN)"
        else:
            lines = answer.text.strip().splitlines() or [""]
            reason = f"answers {method} {path} with {answer.status_code}: {lines[-1][:300]}"
        raise ExecutorUnavailableError(f"The Ray cluster at {self._address} {reason}")
