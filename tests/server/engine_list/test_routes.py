"""/v1/organization/engines."""

from pathlib import Path

from alignkit_server.engines.facts import EngineFacts
from tests.server.support import NoEngines, serve


class Known(NoEngines):
    """Engines in three states."""

    def facts(self) -> list[EngineFacts]:
        return [
            EngineFacts("a", "ready", in_use=3),
            EngineFacts("b", "failed", error="vLLM ended with exit status 3"),
            EngineFacts("c", "external"),
        ]


def test_an_admin_sees_the_engines_of_the_server(tmp_path: Path) -> None:
    with (
        serve(tmp_path, engines=Known()) as running,
        running.http(running.new_key("admins", "admin")) as http,
    ):
        answer = http.get("/v1/organization/engines").json()
    assert answer["object"] == "list"
    assert [tuple(engine.values()) for engine in answer["data"]] == [
        ("a", "organization.engine", "ready", 3, None),
        ("b", "organization.engine", "failed", 0, "vLLM ended with exit status 3"),
        ("c", "organization.engine", "external", 0, None),
    ]
