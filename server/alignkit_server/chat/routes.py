"""POST /v1/chat/completions and /v1/completions."""

from typing import Any

from fastapi import APIRouter, Request, Response

from alignkit_server.chat.body import read_body
from alignkit_server.chat.gateway import Asked, ChatGateway
from alignkit_server.dependencies import ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.limits.quotas import limits_of

CHAT = "/v1/chat/completions"

router = APIRouter(tags=["chat"])
ERRORS = documented(404, 413, 503)
ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "OpenAI's completion object, or its chunks with stream=true",
        "content": {
            "application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"type": "string"}},
        },
    }
}


def _body(asked: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The request body's schema, for the fields that the service itself reads; the engine checks the rest."""
    properties = {"model": {"type": "string", "minLength": 1}, asked: schema, "stream": {"type": "boolean"}}
    body = {"type": "object", "required": ["model", asked], "properties": properties}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}


CHAT_BODY = _body("messages", {"type": "array", "items": {"type": "object"}})
TEXT_BODY = _body("prompt", {})


@router.post(CHAT, responses=ERRORS | ANSWER, openapi_extra=CHAT_BODY)
async def create_chat_completion(request: Request, services: ServicesDep, caller: ProjectDep) -> Response:
    """Answer a chat with a base or fine-tuned model, as a whole or streamed."""
    return await _answer(request, CHAT, services, caller)


@router.post("/v1/completions", responses=ERRORS | ANSWER, openapi_extra=TEXT_BODY)
async def create_completion(request: Request, services: ServicesDep, caller: ProjectDep) -> Response:
    """Continue a text with a base or fine-tuned model, as a whole or streamed."""
    return await _answer(request, "/v1/completions", services, caller)


async def _answer(request: Request, path: str, services: ServicesDep, caller: ProjectDep) -> Response:
    gateway: ChatGateway = request.app.state.chat
    body = await read_body(request)
    model = await services.database.ask(services.catalog.resolve, body.model, caller.project_id)
    template = model.chat_template if path == CHAT else None
    raw = body.salted(services.vault.salt(caller.project_id), template)
    most = limits_of(caller.limits, services.settings.limits).tokens_open
    asked = Asked(path, raw, model.engine, caller.project_id, body.demand, most)
    return await gateway.forward(request, asked)
