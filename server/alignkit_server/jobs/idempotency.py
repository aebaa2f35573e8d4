"""Creates a job once, even if it is requested twice with the same Idempotency-Key."""

import hashlib
from dataclasses import dataclass

from alignkit_server.errors import ApiError
from alignkit_server.jobs.repository import JobRepository
from alignkit_server.jobs.schemas import JobRequest
from alignkit_server.keys.service import Principal
from alignkit_server.services import Services
from alignkit_server.tables import Job

HEADER = "Idempotency-Key"


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The key of a request, and a hash of the request's content."""

    key: str
    request_hash: str

    @classmethod
    def of(cls, key: str, request: JobRequest) -> "Idempotency":
        """The record of a request; omitted fields count as their defaults."""
        return cls(key, hashlib.sha256(request.model_dump_json().encode()).hexdigest())

    def refuse_another(self, job: Job) -> None:
        """Raise 409 if `job`, which was created under this key, was requested with different content."""
        if job.request_hash != self.request_hash:
            raise ApiError(
                409,
                f"The {HEADER} {self.key!r} was used for the job {job.id} with another body: "
                "expected the same body, or a new key.",
                param=HEADER,
                code="idempotency_key_reused",
            )


def created_before(idempotency: Idempotency, project: Principal, services: Services) -> str | None:
    """The id of the job that was already created under the key, looked up before any file is read again."""
    with services.database.reading() as session:
        job = JobRepository(session, project.project_id).by_idempotency_key(idempotency.key)
        if job is None:
            return None
        idempotency.refuse_another(job)
        return job.id
