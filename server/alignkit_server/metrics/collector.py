"""The service as Prometheus sees it: what is true of the jobs is read from the database when asked for.

So every server of one database tells the same of its jobs, also after a restart; of requests and engines each tells
its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from alignkit_server.database import Database
from alignkit_server.metrics.repository import JobFacts, facts

EngineStates = Callable[[], Mapping[str, str]]
"""The state of each engine, by its model."""
ENGINE_STATES = ("stopped", "starting", "ready", "failed")


class RequestMetrics:
    """How long requests took. Made before the service starts; everything else joins its registry then."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "alignkit_request_seconds",
            "Time to the end of the answer",
            ("method", "route", "status"),
            registry=self.registry,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request; `route` is the template of its path, so that no id becomes a label."""
        self._seconds.labels(method, route, str(status)).observe(seconds)


class ServiceCollector(Collector):
    """Jobs and engines."""

    def __init__(self, database: Database, engine_states: EngineStates) -> None:
        self._database = database
        self._engine_states = engine_states

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        yield from _jobs(facts(self._database))
        engines = GaugeMetricFamily(
            "alignkit_engine", "1 for the state an engine is in", labels=("model", "state")
        )
        for model, current in self._engine_states().items():
            for state in ENGINE_STATES:
                engines.add_metric((model, state), float(state == current))
        yield engines


def _jobs(known: JobFacts) -> Iterator[Metric]:
    states = GaugeMetricFamily("alignkit_jobs", "Jobs by state", labels=("status",))
    for status, count in known.states.items():
        states.add_metric((status,), count)
    yield states
    yield SummaryMetricFamily(
        "alignkit_job_queue_wait_seconds",
        "From creation to start, of the jobs that were started",
        count_value=known.started,
        sum_value=known.waited_seconds,
    )
    yield GaugeMetricFamily(
        "alignkit_job_oldest_wait_seconds",
        "Age of the oldest job that waits",
        value=known.oldest_wait_seconds,
    )
    steps = GaugeMetricFamily(
        "alignkit_job_step_seconds", "Of a running job's last steps", labels=("job_id",)
    )
    tokens = GaugeMetricFamily(
        "alignkit_job_tokens_per_second", "Of a running job's last steps", labels=("job_id",)
    )
    for pace in known.paces:
        steps.add_metric((pace.job_id,), pace.step_seconds)
        if pace.tokens_per_second is not None:
            tokens.add_metric((pace.job_id,), pace.tokens_per_second)
    yield steps
    yield tokens
