"""GET /metrics."""

from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from alignkit_server.errors import documented
from alignkit_server.metrics.collector import RequestMetrics

PATH = "/metrics"
router = APIRouter(tags=["health"])


ANSWER: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get(PATH, response_class=Response, responses=documented(403) | ANSWER)
def metrics(request: Request) -> Response:
    """Return the service's metrics for Prometheus. Needs an admin or metrics key, unless metrics are open."""
    known: RequestMetrics = request.app.state.request_metrics
    return Response(generate_latest(known.registry), media_type=CONTENT_TYPE_LATEST)
