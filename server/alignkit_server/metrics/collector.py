"""Exports the service's metrics to Prometheus; job metrics are read from the database on each scrape.

All servers of one database therefore report the same job metrics, also after a restart. Request and engine metrics
are those of each server alone.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from alignkit_server.database import Database
from alignkit_server.engines.facts import ListEngines
from alignkit_server.metrics.repository import JobFacts, facts

ENGINE_STATES = ("stopped", "starting", "ready", "sleeping", "failed")


class RequestMetrics:
    """Durations of requests. Created before the service starts, when the other metrics join its registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "alignkit_request_seconds",
            "Time until the end of the answer",
            ("method", "route", "status"),
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Record a request; `route` is its path template, so that ids never become labels."""
        self._seconds.labels(method, route, str(status)).observe(seconds)


class ServiceCollector(Collector):
    """Metrics of jobs and engines."""

    def __init__(self, database: Database, engines: ListEngines) -> None:
        self._database = database
        self._engines = engines

    def describe(self) -> Iterable[Metric]:
        """Nothing, because registering must not read the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All current metrics."""
        yield from _jobs(facts(self._database))
        engines = GaugeMetricFamily(
            "alignkit_engine", "1 for the current state of an engine", labels=("model", "state")
        )
        for engine in self._engines():
            for state in ENGINE_STATES if engine.status in ENGINE_STATES else ():
                engines.add_metric((engine.model, state), float(state == engine.status))
        yield engines


def _jobs(known: JobFacts) -> Iterator[Metric]:
    states = GaugeMetricFamily("alignkit_jobs", "Jobs by state", labels=("status",))
    for status, count in known.states.items():
        states.add_metric((status,), count)
    yield states
    yield SummaryMetricFamily(
        "alignkit_job_queue_wait_seconds",
        "Time from creation to start, for jobs that have started",
        count_value=known.started,
        sum_value=known.waited_seconds,
    )
    yield GaugeMetricFamily(
        "alignkit_job_oldest_wait_seconds",
        "Age of the oldest waiting job",
        value=known.oldest_wait_seconds,
    )
    steps = GaugeMetricFamily(
        "alignkit_job_step_seconds", "Seconds per step over a running job's latest steps", labels=("job_id",)
    )
    tokens = GaugeMetricFamily(
        "alignkit_job_tokens_per_second",
        "Tokens per second over a running job's latest steps",
        labels=("job_id",),
    )
    for pace in known.paces:
        steps.add_metric((pace.job_id,), pace.step_seconds)
        if pace.tokens_per_second is not None:
            tokens.add_metric((pace.job_id,), pace.tokens_per_second)
    yield steps
    yield tokens
