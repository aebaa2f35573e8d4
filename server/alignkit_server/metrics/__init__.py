"""What Prometheus is told of the service."""
