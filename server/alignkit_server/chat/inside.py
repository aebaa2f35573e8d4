"""Chat requests of the service's own durable work, under the same rules as a client's: names, options, turns, limits.

The work runs in threads, the gateway in the server's event loop.
"""

import asyncio
import json
import threading
from typing import Any

from alignkit_server.catalog.model_catalog import ModelCatalog
from alignkit_server.chat.body import parse_body
from alignkit_server.chat.gateway import Asked, ChatGateway
from alignkit_server.chat.own_options import CHAT, own_options
from alignkit_server.database import Database
from alignkit_server.limits.quotas import limits_of
from alignkit_server.outages import Detached
from alignkit_server.settings import Settings
from alignkit_server.tables import Project
from alignkit_server.vault import open_vault

LOOK_SECONDS = 0.5
"""Seconds between two looks at whether the server stops."""


class InsideChat:
    """Asks models on behalf of a project. Thread-safe; every call blocks, and none may come from the event loop."""

    def __init__(
        self, gateway: ChatGateway, loop: asyncio.AbstractEventLoop, settings: Settings, database: Database
    ) -> None:
        self._gateway = gateway
        self._loop = loop
        self._database = database
        self._catalog = ModelCatalog(settings, database)
        self._limits = settings.limits
        self._vault = open_vault(settings.root)

    def ask(self, project_id: str, body: dict[str, Any], stopping: threading.Event) -> dict[str, Any]:
        """The completion object that answers `body`. Raises ApiError, and Detached when `stopping` is set."""
        checked = parse_body(json.dumps(body).encode())
        model = self._catalog.resolve(checked.model, project_id)
        raw = checked.salted(self._vault.salt(project_id), own_options(CHAT, model))
        most = self._most_tokens(project_id)
        asked = Asked(CHAT, raw, model.engine, project_id, checked.demand, most, model.lora_rank)
        answering = asyncio.run_coroutine_threadsafe(self._gateway.answer(asked), self._loop)
        while not stopping.is_set():
            try:
                found: dict[str, Any] = json.loads(answering.result(LOOK_SECONDS))
            except TimeoutError:
                if answering.done():
                    raise
            else:
                return found
        answering.cancel()
        raise Detached

    def _most_tokens(self, project_id: str) -> int | None:
        with self._database.reading() as session:
            project = session.get_one(Project, project_id)
            return limits_of(project.limits or {}, self._limits).tokens_open
