"""POST /v1/chat/completions and /v1/completions."""

from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from server.chat.body import read_body
from server.chat.gateway import ChatGateway
from server.errors import ApiError

ResolveBase = Callable[[Request, str], str | None]
"""(request, model name) to the base model whose engine answers with it; None where the caller has no such model."""


def build_router(resolve_base: ResolveBase) -> APIRouter:
    """The routes; they find the ChatGateway as `app.state.chat`. `resolve_base` may block."""
    router = APIRouter(tags=["chat"])

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await answer(request, "/v1/chat/completions")

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await answer(request, "/v1/completions")

    async def answer(request: Request, path: str) -> Response:
        gateway: ChatGateway = request.app.state.chat
        body = await read_body(request)
        base_model = await run_in_threadpool(resolve_base, request, body.model)
        if base_model is None:
            message = f"The model {body.model!r} does not exist, or it is not ready yet."
            raise ApiError(404, message, param="model", code="model_not_found")
        return await gateway.forward(request, path, body.raw, base_model)

    return router
