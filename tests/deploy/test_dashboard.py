"""Grafana's dashboard and Prometheus's configuration, against what the service's own /metrics says."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from alignkit_server.engines.facts import EngineFacts
from alignkit_server.metrics.collector import ENGINE_STATES, ServiceCollector
from alignkit_server.metrics.routes import PATH
from tests.deploy.rendering import DEPLOY, composed
from tests.server.support import create_job, serve

DASHBOARD = json.loads((DEPLOY / "grafana" / "alignkit.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PROMETHEUS = {"instance", "job"}
"""The labels that Prometheus adds to everything it scrapes."""

Samples = dict[str, dict[str, set[str]]]
"""Of each sample's name, its labels, and the values that each was seen with."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """What a server with a running job and an engine exposes."""
    with serve(tmp_path_factory.mktemp("home"), metrics_open=True) as running:
        with running.client(running.new_key("mine")) as client:
            job = create_job(client).id
        created = running.ledger.get(job).created_at
        running.ledger.transition(job, "running", only_from=("queued",), started_at=created + 1)
        for step in (10, 20):
            data = {"step": step, "num_tokens": 100 * step}
            running.ledger.add_event(
                job, level="info", message="a step", type="metrics", data=data, created_at=created + step
            )
        text = running.http(None).get(PATH).text
        engines = ServiceCollector(
            running.services.database, lambda: [EngineFacts("tiny", "ready")]
        ).collect()
        found: Samples = {}
        for family in (*text_string_to_metric_families(text), *engines):
            for sample in family.samples:
                for label, value in sample.labels.items():
                    found.setdefault(sample.name, {}).setdefault(label, set()).add(value)
                found.setdefault(sample.name, {})
    return found


def queries() -> Iterator[Any]:
    """Every expression of the dashboard."""
    for panel in PANELS:
        for target in panel["targets"]:
            name = f"{panel['title']} {target['refId']}"
            yield pytest.param(_filled_in(target["expr"]), target["legendFormat"], id=name)


def _filled_in(query: str) -> str:
    for name, value in {"$__rate_interval": "1m", "$__range": "6h", "$route": ".*"}.items():
        query = query.replace(name, value)
    return query


@pytest.mark.parametrize(("query", "legend"), list(queries()))
def test_a_query_asks_for_what_is_exposed(query: str, legend: str, samples: Samples) -> None:
    selectors, grouped = _parts(promql_parser.parse(query))
    assert selectors
    labels: set[str] = set(PROMETHEUS)
    for selector in selectors:
        known = samples[selector.name]
        labels |= known.keys()
        for matcher in selector.matchers.matchers:
            assert matcher.name in known
    assert grouped <= labels
    assert set(_braced(legend)) <= labels


def _parts(expression: Any) -> tuple[list[Any], set[str]]:
    """The vectors that an expression selects, and the labels that it groups by."""
    selectors: list[Any] = []
    grouped: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            selectors.append(node)
        if isinstance(node, promql_parser.MatrixSelector):
            selectors.append(node.vector_selector)
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            grouped.update(node.modifier.labels)

    promql_parser.walk(expression, visit)
    return selectors, grouped


def _braced(legend: str) -> list[str]:
    return [part.partition("}}")[0] for part in legend.split("{{")[1:]]


def test_every_metric_of_the_service_is_shown(samples: Samples) -> None:
    shown = {
        selector.name
        for query in (_filled_in(target["expr"]) for panel in PANELS for target in panel["targets"])
        for selector in _parts(promql_parser.parse(query))[0]
    }
    families = {name for name in samples if not name.endswith(("_created", "_sum", "_total"))}
    assert families <= shown


def test_states_that_are_named_are_states(samples: Samples) -> None:
    text = json.dumps(DASHBOARD)
    assert all(f'state=\\"{state}\\"' in text for state in ENGINE_STATES if state != "stopped")
    for status in ("running", "validating_files", "queued", "failed", "succeeded", "cancelled"):
        assert status in samples["alignkit_jobs"]["status"]
        assert status in text


def test_the_variable_asks_for_what_is_exposed(samples: Samples) -> None:
    datasource, route = DASHBOARD["templating"]["list"]
    assert (datasource["type"], datasource["query"]) == ("datasource", "prometheus")
    metric, _, label = route["definition"].removeprefix("label_values(").removesuffix(")").partition(", ")
    assert label in samples[metric]
    assert route["query"]["query"] == route["definition"]


def test_panels_lie_beside_each_other_and_read_the_chosen_source() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    for left, right in itertools.combinations([panel["gridPos"] for panel in DASHBOARD["panels"]], 2):
        apart = left["x"] + left["w"] <= right["x"] or right["x"] + right["w"] <= left["x"]
        below = left["y"] + left["h"] <= right["y"] or right["y"] + right["h"] <= left["y"]
        assert apart or below
    for panel in PANELS:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_prometheus_scrapes_what_answers() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    services = composed(("vllm",))["services"]
    for job in config["scrape_configs"]:
        assert "metrics_path" not in job, f"the default is {PATH}"
        for target in itertools.chain.from_iterable(group["targets"] for group in job["static_configs"]):
            host, _, port = target.partition(":")
            assert host in services
            assert port == "8000"
    (server,) = (job for job in config["scrape_configs"] if job["job_name"] == "alignkit")
    assert Path(server["authorization"]["credentials_file"]).is_absolute(), "a reference, never a value"
