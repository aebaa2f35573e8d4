"""Webhook endpoints in the form of OpenAI's API."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from alignkit_server.fields import Name

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
EVENT_TYPES: tuple[str, ...] = get_args(EventType)

EventTypes = Annotated[
    list[EventType],
    Field(min_length=1, max_length=20),
    AfterValidator(lambda given: list(dict.fromkeys(given))),
]
EndpointName = Annotated[Name, Field(min_length=1, max_length=255)]
Url = Annotated[str, Field(min_length=1, max_length=2048, description="an https URL with a public address")]


class EndpointRequest(BaseModel):
    """A request to add an endpoint."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: EndpointName
    url: Url
    event_types: EventTypes


class EndpointUpdate(BaseModel):
    """Changes to an endpoint; omitted fields stay."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: EndpointName | None = None
    url: Url | None = None
    event_types: EventTypes | None = None


class RotateRequest(BaseModel):
    """Options for replacing a signing secret."""

    model_config = ConfigDict(strict=True, extra="forbid")

    keep_old_secret_active_for_24_hours: bool = False


class TestRequest(BaseModel):
    """The sample event to send."""

    model_config = ConfigDict(strict=True, extra="forbid")

    event_type: EventType


class EndpointObject(BaseModel):
    """A webhook endpoint."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    updated_at: int
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str = Field(description="the secret's last four characters")


class EndpointWithSecret(EndpointObject):
    """An endpoint whose secret was just created; no other answer contains it."""

    signing_secret: str


class EndpointDeleted(BaseModel):
    """The confirmation that an endpoint was deleted."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: bool = True


class TestResult(BaseModel):
    """An endpoint's answer to a sample event."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True] = True


class EventTypeList(BaseModel):
    """All event types."""

    object: Literal["list"] = "list"
    data: list[str]
