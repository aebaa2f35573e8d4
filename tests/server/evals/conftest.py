"""A service whose models are answered by a function, and runs of evals that are graded at once."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from openai import OpenAI

from alignkit_server.chat.inside import InsideChat
from alignkit_server.engines.facts import Lease
from alignkit_server.evals.running import EvalServices, grade_run
from tests.evaluate.endpoint import Endpoint, Reply, chat, endpoint
from tests.server.support import BASE_MODEL, NoEngines, Running, serve

USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def reply(text: str) -> Reply:
    """A chat's answer with its usage, as an engine gives it."""
    status, body = chat(text)
    return status, body | {"usage": USAGE}


class OneEngine(NoEngines):
    """An engine that answers for every model."""

    def __init__(self, url: str) -> None:
        self._url = url

    def running_endpoint(self, base_model: str) -> str:  # type: ignore[override]
        return self._url

    def lease(self, base_model: str, rank: int = 0) -> Lease:  # type: ignore[override]
        return Lease(self._url, lambda: None)


@dataclass
class Lab:
    """A running service, its engine, and what that engine answers."""

    service: Running
    engine: Endpoint
    answer: Callable[[dict[str, Any]], Reply] = field(default=lambda _: reply("yes"))
    stopping: threading.Event = field(default_factory=threading.Event)

    def grade(self, run_id: str) -> None:
        """Do what the durable workflow of the run does."""
        runner = self.service.runner
        gateway, loop = self.service.chat, runner.loop
        assert loop is not None
        models = InsideChat(gateway, loop, self.service.settings, self.service.services.database)
        services = EvalServices(
            self.service.services.database, self.service.settings, models, "test", self.stopping
        )
        grade_run(run_id, services)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made: list[Lab] = []
    with endpoint(lambda body: made[0].answer(body)) as engine:  # noqa: PLW0108 - its answer changes
        url = engine.url.removesuffix("/v1")
        with serve(tmp_path_factory.mktemp("evals"), engines=OneEngine(url)) as service:
            made.append(Lab(service, engine))
            yield made[0]


@pytest.fixture
def mine(lab: Lab, project: str) -> Iterator[OpenAI]:
    """A client of a project of its own."""
    lab.answer = lambda _: reply("yes")
    with lab.service.client(lab.service.new_key(project)) as client:
        yield client


SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
}
EQUAL: dict[str, Any] = {
    "type": "string_check",
    "name": "equal",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


def make_eval(client: OpenAI, *criteria: Any, sample: bool = True, **options: Any) -> str:
    """Create an eval over questions and answers; its id."""
    config: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": sample}
    return client.evals.create(
        data_source_config=config, testing_criteria=list(criteria) or [EQUAL], **options
    ).id


def rows(*answers: str) -> list[dict[str, Any]]:
    """A row for each answer."""
    return [{"item": {"question": f"q{n}", "answer": answer}} for n, answer in enumerate(answers)]


def sampled(content: list[dict[str, Any]], **options: Any) -> Any:
    """A data source that samples the base model."""
    messages = {"type": "template", "template": [{"role": "user", "content": "{{item.question}}?"}]}
    source = {"type": "file_content", "content": content}
    return {
        "type": "completions",
        "source": source,
        "model": BASE_MODEL,
        "input_messages": messages,
    } | options
