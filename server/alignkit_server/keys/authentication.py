"""Requires a key for every request, around the whole application, so that no route can be forgotten."""

from starlette.datastructures import Headers, QueryParams
from starlette.types import ASGIApp, Receive, Scope, Send

from alignkit_server.errors import ApiError, error_response
from alignkit_server.keys.links import PARAMETER, open_link
from alignkit_server.keys.service import Principal, authenticate, principal_of
from alignkit_server.page import paths as page

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json"})


class KeyAuthentication:
    """ASGI middleware: sets `request.state.principal`, or answers 401 (400 for a URL that contains NUL)."""

    def __init__(self, app: ASGIApp, also_open: frozenset[str] = frozenset()) -> None:
        self._app = app
        self._open = OPEN_PATHS | also_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests to open paths and requests with a valid key."""
        if scope["type"] != "http" or scope["path"] in self._open or page.is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            principal = await self._by_link(scope) or await self._principal(scope)
            _refuse_nul(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, receive, send)

    async def _by_link(self, scope: Scope) -> Principal | None:
        """The caller of a download by link, which is left in `request.state.link`; None if the request has none."""
        link = QueryParams(scope["query_string"]).get(PARAMETER)
        if link is None or scope["method"] != "GET" or "authorization" in Headers(scope=scope):
            return None
        services = scope["app"].state.services
        opened = open_link(services.vault, link, scope["path"])
        principal = opened and await principal_of(services.database, opened.key_id)
        if principal is None:
            raise _refused("The link is not valid, or has expired: ask for another.")
        scope.setdefault("state", {})["link"] = opened
        return principal

    async def _principal(self, scope: Scope) -> Principal:
        kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise _refused("No API key was provided: expected the header 'Authorization: Bearer sk-…'.")
        database = scope["app"].state.services.database
        principal = await authenticate(database, token.strip())
        if principal is None:
            raise _refused(
                "The API key is not valid: expected a key created by this service that has not been revoked and "
                "has not expired."
            )
        return principal


def _refuse_nul(scope: Scope) -> None:
    if b"%00" in scope["raw_path"] + scope["query_string"]:
        raise ApiError(400, "The URL contains a NUL character (%00).")


def _refused(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")
