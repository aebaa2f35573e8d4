"""Delivers webhook events durably: each attempt is a DBOS workflow, and a failed one enqueues the next with a delay.

An event that waits for its next attempt therefore costs a row, not a thread, and survives restarts. An endpoint
may receive an event twice, with the same `webhook-id`.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import anyio
import structlog
from dbos import DBOS, SetEnqueueOptions, SetWorkflowID
from sqlalchemy import select

from alignkit.errors import AlignkitError
from alignkit_server.database import Database
from alignkit_server.outages import left_to_recovery, outlast
from alignkit_server.queues import take_turns
from alignkit_server.settings import Settings
from alignkit_server.tables import Delivery, Endpoint
from alignkit_server.vault import Vault
from alignkit_server.webhooks.repository import PENDING
from alignkit_server.webhooks.sender import send
from alignkit_server.webhooks.signing import active_secrets
from alignkit_server.webhooks.targets import TargetError

QUEUE = "webhooks_by_project"
SENT_AT_ONCE = 8
OF_A_PROJECT = 2
"""Attempts at once per project: fewer than SENT_AT_ONCE, so that one project's endpoints do not block another's."""
HOUR = 3600.0
BACK_OFF_SECONDS = (5.0, 30.0, 120.0, 600.0, HOUR, 4 * HOUR, 12 * HOUR, 24 * HOUR, 24 * HOUR)
"""Delays between attempts; about three days in total, as at OpenAI."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Outbox:
    """The dependencies of delivery."""

    database: Database
    settings: Settings
    vault: Vault
    version: str
    """The application's version, part of every workflow id: workflows of older versions are cancelled at start."""
    stopping: threading.Event


_outbox: Outbox | None = None


def start(outbox: Outbox) -> None:
    """Resume the deliveries that the previous server left. Call it after DBOS has started."""
    global _outbox  # noqa: PLW0603 - DBOS workflows are module functions
    _outbox = outbox
    take_turns(QUEUE, at_once=SENT_AT_ONCE, of_a_project=OF_A_PROJECT)
    with outbox.database.reading() as session:
        query = select(Delivery.id, Delivery.attempts).where(Delivery.status == PENDING)
        waiting = session.execute(query.order_by(Delivery.seq)).all()
    for delivery_id, attempts in waiting:
        enqueue(delivery_id, attempts + 1)


def enqueue(delivery_id: str, attempt: int = 1, *, delay: float | None = None) -> None:
    """Enqueue an attempt in its project's partition. Idempotent."""
    with _use().database.reading() as session:
        project_id = session.scalar(select(Delivery.project_id).where(Delivery.id == delivery_id))
    if project_id is None:  # the endpoint was deleted
        return
    workflow_id = f"{delivery_id}-{attempt}-v{_use().version}-of-project"
    turn = SetEnqueueOptions(delay_seconds=delay, queue_partition_key=project_id)
    with SetWorkflowID(workflow_id), turn:
        DBOS.enqueue_workflow(QUEUE, deliver, delivery_id, attempt)


def pending(job_id: str) -> list[str]:
    """Ids of the job's events that are not delivered yet."""
    query = select(Delivery.id).where(Delivery.status == PENDING, Delivery.job_id == job_id)
    query = query.order_by(Delivery.seq)
    with _use().database.reading() as session:
        return list(session.scalars(query))


def untried(before: int) -> Sequence[str]:
    """Ids of the events stored before a time that were never sent."""
    query = select(Delivery.id).where(
        Delivery.status == PENDING, Delivery.attempts == 0, Delivery.created_at < before
    )
    with _use().database.reading() as session:
        return session.scalars(query.order_by(Delivery.seq)).all()


def _use() -> Outbox:
    if _outbox is None:
        raise RuntimeError("the runner is not started")
    return _outbox


@DBOS.workflow(name="deliver_webhook")
def deliver(delivery_id: str, attempt: int) -> None:
    """Attempt a delivery; if it fails, enqueue the next attempt unless it was the last."""
    with left_to_recovery():
        if not try_to_send(delivery_id, attempt) and attempt <= len(BACK_OFF_SECONDS):
            enqueue(delivery_id, attempt + 1, delay=BACK_OFF_SECONDS[attempt - 1])


@DBOS.step(name="try_to_send_webhook")
def try_to_send(delivery_id: str, attempt: int) -> bool:
    """Send the event, and again if an outage prevents storing the result; returns whether it is settled."""
    return outlast(lambda: _try_to_send(delivery_id, attempt), _use().stopping)


def _try_to_send(delivery_id: str, attempt: int) -> bool:
    outbox = _use()
    query = select(Delivery, Endpoint).join(Endpoint, Delivery.endpoint_id == Endpoint.id)
    with outbox.database.reading() as session:
        found = session.execute(query.where(Delivery.id == delivery_id)).one_or_none()
    if (
        found is None or found[0].status != PENDING
    ):  # the endpoint was deleted, or a crash followed the answer
        return True
    delivery, endpoint = found
    delivered, answer = _attempt(delivery, endpoint, outbox)
    given_up = not delivered and attempt > len(BACK_OFF_SECONDS)
    with outbox.database.writing() as session:
        row = session.get(Delivery, delivery.seq)
        if row is not None:
            row.attempts, row.last_answer = attempt, answer
            row.status = "delivered" if delivered else "given_up" if given_up else PENDING
    if not delivered:
        log.warning("webhook not delivered", delivery_id=delivery_id, attempt=attempt, answer=answer)
    return delivered or given_up


def _attempt(delivery: Delivery, endpoint: Endpoint, outbox: Outbox) -> tuple[bool, str]:
    """Whether the endpoint accepted the event, and its answer."""
    try:
        signing = active_secrets(endpoint, outbox.vault)
        private = outbox.settings.webhook_private_targets
        sending = partial(send, endpoint.url, signing, delivery.payload, private=private)
        status = anyio.run(sending)
    except (TargetError, AlignkitError) as error:
        return False, str(error)
    return 200 <= status < 300, f"status {status}"
