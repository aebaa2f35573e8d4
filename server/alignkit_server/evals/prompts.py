"""Prompts of evals: messages whose texts may hold references, rendered for one row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from alignkit_server.evals.references import TemplateError, fill, look_up, parse
from alignkit_server.fields import Name

MAX_MESSAGES = 64
ROLES = {"developer": "system"}
"""Roles that chat templates do not know -> the role under which they are rendered."""

Template = Annotated[
    Name, Field(max_length=64 * 2**10, description="text, with references such as {{item.x}}")
]


class Part(BaseModel):
    """A text part of a message; images and audio are not served."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["input_text", "output_text"]
    text: Template


class PromptMessage(BaseModel):
    """A message of a prompt."""

    model_config = ConfigDict(strict=True, extra="forbid")

    role: Literal["user", "assistant", "system", "developer"]
    content: Template | Part | Annotated[list[Template | Part], Field(max_length=MAX_MESSAGES)]
    type: Literal["message"] | None = None

    def texts(self) -> Iterator[str]:
        """Its texts, in order."""
        parts = self.content if isinstance(self.content, list) else [self.content]
        return (part if isinstance(part, str) else part.text for part in parts)

    def render(self, scope: Mapping[str, Any]) -> dict[str, str]:
        """The message for the model. Raises TemplateError if the row lacks a value."""
        content = "\n".join(fill(text, scope) for text in self.texts())
        return {"role": ROLES.get(self.role, self.role), "content": content}


Messages = Annotated[list[PromptMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


def render_all(messages: Sequence[PromptMessage], scope: Mapping[str, Any]) -> list[dict[str, str]]:
    """All messages for the model. Raises TemplateError if the row lacks a value."""
    return [message.render(scope) for message in messages]


def messages_at(reference: str, scope: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages that a row itself holds. Raises TemplateError if there are none."""
    found = look_up(parse(reference), scope)
    whole = isinstance(found, list) and bool(found) and all(map(_is_message, found))
    if not whole:
        raise TemplateError(
            f"{reference}: expected a list of messages, each with a role and a text as content"
        )
    return [{"role": ROLES.get(one["role"], one["role"]), "content": one["content"]} for one in found]


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.get("role") in {"user", "assistant", "system", "developer"}
        and isinstance(value.get("content"), str)
    )
