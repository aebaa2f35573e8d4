"""The routes of completions, and the options that the service adds to requests of single models."""

from typing import Any

from alignkit_server.catalog.model_catalog import ResolvedModel
from alignkit_server.errors import ApiError

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
RESPONSE = "/v1/responses"


def own_options(path: str, model: ResolvedModel) -> dict[str, Any]:
    """Options that the service adds to requests to this model, whose training differed from its base model's."""
    own: dict[str, Any] = {}
    if model.stop_token_ids and path != TEXT:
        own["stop_token_ids"] = model.stop_token_ids
    if model.chat_template is not None and path == CHAT:
        own["chat_template"] = model.chat_template
    if model.chat_template is not None and path == RESPONSE:
        raise ApiError(
            400,
            f"The model {model.name} was trained with a chat template of its own, which the engine takes with "
            f"{CHAT} only: ask there.",
            param="model",
            code="invalid_value",
        )
    return own
