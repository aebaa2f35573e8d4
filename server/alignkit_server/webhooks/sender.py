"""Signs events by the standard-webhooks specification, as OpenAI does, and sends them."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import httpx
from anyio import CapacityLimiter, to_thread

from alignkit_server.webhooks.signing import PREFIX
from alignkit_server.webhooks.targets import Target, TargetError, resolve

TIMEOUT_SECONDS = 10.0
"""Limit for the name lookup, the connection and the answer together."""
USER_AGENT = "alignkit-webhooks/1"
CERTIFICATES = httpx.create_ssl_context(trust_env=False)
"""Loaded once, because that takes some 17 ms, in which the event loop of a sample's request answers nobody."""


def sign(signing: Sequence[str], event_id: str, timestamp: int, body: str) -> str:
    """The signature header: for each secret, v1 and the HMAC-SHA256 of `id.timestamp.body`."""
    content = f"{event_id}.{timestamp}.{body}".encode()
    keys = [base64.b64decode(secret.removeprefix(PREFIX)) for secret in signing]
    return " ".join(
        f"v1,{base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()}" for key in keys
    )


async def send(
    url: str,
    signing: Sequence[str],
    payload: dict[str, Any],
    *,
    private: bool,
    lookups: CapacityLimiter | None = None,
) -> int:
    """Send an event and return the status code of the endpoint's answer.

    Raises TargetError if it does not answer within TIMEOUT_SECONDS. One limit covers everything, because a peer that
    sends a byte now and then meets every shorter deadline. A name lookup that takes longer keeps its slot of
    `lookups` until it ends.
    """
    try:
        with anyio.fail_after(TIMEOUT_SECONDS):
            look_up = partial(resolve, url, private=private)
            target = await to_thread.run_sync(
                look_up, abandon_on_cancel=True, limiter=lookups or CapacityLimiter(1)
            )
            return await _post(target, signing, payload)
    except TimeoutError as error:
        raise TargetError(f"it did not answer within {TIMEOUT_SECONDS:g} seconds") from error
    except httpx.HTTPError as error:
        raise TargetError(f"it cannot be reached: {type(error).__name__}") from error


async def _post(target: Target, signing: Sequence[str], payload: dict[str, Any]) -> int:
    body, timestamp = json.dumps(payload), int(time.time())
    headers = {
        "host": target.host,
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": payload["id"],
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(signing, payload["id"], timestamp, body),
    }
    # The certificate must match the name, although the connection goes to the address.
    extensions = {"sni_hostname": target.server_name}
    async with (
        httpx.AsyncClient(trust_env=False, timeout=TIMEOUT_SECONDS, verify=CERTIFICATES) as client,
        client.stream("POST", target.url, content=body, headers=headers, extensions=extensions) as answer,
    ):
        return answer.status_code
