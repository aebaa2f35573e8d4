"""Limits requests per minute and key, in fixed windows, with the headers that OpenAI sends."""

import math
import time
from typing import cast

import structlog
from limits import RateLimitItemPerMinute
from limits.aio.storage import Storage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from alignkit.errors import AlignkitError
from alignkit_server.errors import ApiError, error_response
from alignkit_server.keys.service import caller_of
from alignkit_server.limits.quotas import limits_of
from alignkit_server.settings import Limits

REDIS_OPTIONS: dict[str, str | float] = {
    "implementation": "redispy",  # the common client; the default of `limits` is another one
    "socket_connect_timeout": 1.0,
    "socket_timeout": 1.0,
}
"""Short timeouts: a Redis that does not answer must not delay requests for long."""

log = structlog.get_logger()


class RateLimit:
    """ASGI middleware after authentication: counts the request for its key, or answers 429.

    If the storage does not answer, that is logged and all requests pass: the rate limit is not an access control.
    """

    def __init__(self, app: ASGIApp, defaults: Limits, storage: Storage) -> None:
        self._app = app
        self._defaults = defaults
        self._limiter = FixedWindowRateLimiter(storage)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and add headers with the number of remaining requests."""
        principal = caller_of(scope)
        if principal is None:  # a path that needs no key
            await self._app(scope, receive, send)
            return
        most = limits_of(principal.limits, self._defaults).requests_per_minute
        if most is None:
            await self._app(scope, receive, send)
            return
        try:
            allowed, headers = await self._count(principal.key_id, most)
        except StorageError:
            log.exception("requests cannot be counted")
            allowed, headers = True, {}

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        answer = self._app if allowed else error_response(_too_many(most, headers))
        await answer(scope, receive, send_with_limits)

    async def _count(self, key_id: str, most: int) -> tuple[bool, dict[str, str]]:
        """Whether the key may make this request, and the rate-limit headers."""
        item = RateLimitItemPerMinute(most)
        allowed = await self._limiter.hit(item, key_id)
        window = await self._limiter.get_window_stats(item, key_id)
        seconds = max(1, math.ceil(window.reset_time - time.time()))
        headers = {
            "x-ratelimit-limit-requests": str(most),
            "x-ratelimit-remaining-requests": str(window.remaining),
            "x-ratelimit-reset-requests": f"{seconds}s",
        }
        return allowed, headers if allowed else headers | {"retry-after": str(seconds)}


def _too_many(most: int, headers: dict[str, str]) -> ApiError:
    return ApiError(
        429,
        f"Too many requests: the limit of this key is {most:,} per minute, and all are used. "
        f"Try again in {headers['retry-after']} s.",
        type="requests",
        code="rate_limit_exceeded",
    )


def open_storage(url: str) -> Storage:
    """The storage of request counts. Raises AlignkitError if the URL is invalid or its package is not installed."""
    options = REDIS_OPTIONS if "redis" in url.partition(":")[0] else {}
    try:
        return cast(Storage, storage_from_string(f"async+{url}", wrap_exceptions=True, **options))
    except ConfigurationError as error:
        raise AlignkitError(f"rate_limit_storage: expected a URL such as memory://, {error}") from error
