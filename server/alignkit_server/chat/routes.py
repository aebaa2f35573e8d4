"""POST /v1/chat/completions, /v1/completions and /v1/responses."""

from typing import Any

from fastapi import APIRouter, Request, Response

from alignkit_server.chat.body import read_body
from alignkit_server.chat.gateway import Asked, ChatGateway
from alignkit_server.chat.options import OPTIONS, RESPONSES
from alignkit_server.chat.own_options import CHAT, RESPONSE, TEXT, own_options
from alignkit_server.dependencies import ProjectDep, ServicesDep
from alignkit_server.errors import documented
from alignkit_server.limits.quotas import limits_of
from alignkit_server.limits.turns import end_turn

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
RESPONSE_BODY = _body(
    "input", {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}
)


@router.post(CHAT, responses=ERRORS | ANSWER, openapi_extra=CHAT_BODY)
async def create_chat_completion(request: Request, services: ServicesDep, caller: ProjectDep) -> Response:
    """Answer a chat with a base or fine-tuned model, as a whole or streamed."""
    return await _answer(request, CHAT, services, caller)


@router.post(TEXT, responses=ERRORS | ANSWER, openapi_extra=TEXT_BODY)
async def create_completion(request: Request, services: ServicesDep, caller: ProjectDep) -> Response:
    """Continue a text with a base or fine-tuned model, as a whole or streamed."""
    return await _answer(request, TEXT, services, caller)


@router.post(RESPONSE, responses=ERRORS | ANSWER, openapi_extra=RESPONSE_BODY)
async def create_response(request: Request, services: ServicesDep, caller: ProjectDep) -> Response:
    """Answer with a base or fine-tuned model in OpenAI's Responses form, as a whole or streamed. Stores nothing."""
    return await _answer(request, RESPONSE, services, caller)


async def _answer(request: Request, path: str, services: ServicesDep, caller: ProjectDep) -> Response:
    gateway: ChatGateway = request.app.state.chat
    body = await read_body(request, RESPONSES if path == RESPONSE else OPTIONS)
    model = await services.database.ask(services.catalog.resolve, body.model, caller.project_id)
    raw = body.salted(services.vault.salt(caller.project_id), own_options(path, model))
    most = limits_of(caller.limits, services.settings.limits).tokens_open
    end_turn()  # from here on the engine's turns count
    asked = Asked(path, raw, model.engine, caller.project_id, body.demand, most, model.lora_rank)
    return await gateway.forward(request, asked)
