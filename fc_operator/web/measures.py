"""What the HTTP service counts about itself."""

from __future__ import annotations

from fc_operator.kit import metrics
from fc_operator.web.routes import Route


class Measures:
    """Requests by route and status, their time, streams and webhook deliveries."""

    def __init__(self, registry: metrics.Registry) -> None:
        self.registry = registry
        self._requests = registry.counter(
            "fc_http_requests_total", "Requests answered.", ("method", "route", "status")
        )
        self._seconds = registry.histogram(
            "fc_http_request_seconds", "From the whole request to the answer.", ("route",)
        )
        self.log_streams = registry.gauge("fc_log_streams", "Live log viewers.")
        self.deliveries = registry.counter(
            "fc_webhook_deliveries_total", "Webhook deliveries by outcome.", ("forge", "outcome")
        )
        self.cache_uploads = registry.counter(
            "fc_cache_uploads_total", "Uploads to the binary cache.", ("kind", "outcome")
        )
        self._children: dict[tuple[int, int], tuple[metrics.Counter, metrics.Histogram]] = {}

    def answered(self, route: Route, status: int, seconds: float) -> None:
        """Count an answer of a route."""
        key = (id(route), status)
        children = self._children.get(key)
        if children is None:
            # Looking a child up by its labels costs more than counting.
            children = self._children[key] = (
                self._requests.labels(route.method, route.path, str(status)),
                self._seconds.labels(route.path),
            )
        children[0].inc()
        if not route.streams:
            children[1].observe(seconds)

    def refused(self, status: int) -> None:
        """Count an answer that no route gave."""
        self._requests.labels("", "", str(status)).inc()
