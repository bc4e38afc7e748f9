"""Counters, histograms and gauges in the Prometheus text format.

One registry per ``Registry``, none global, so that tests and several services in one process do not
meet. Counting costs a dictionary look-up; nothing here ever asks a database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

__all__ = ["MEDIA", "Counter", "Gauge", "Histogram", "Registry"]

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds for what people wait for."""


class Registry:
    """What one process counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)

    def counter(self, name: str, meaning: str, labels: Iterable[str] = ()) -> Counter:
        """A number that only grows; ``name`` ends in ``_total``."""
        return Counter(name, meaning, tuple(labels), registry=self._registry)

    def gauge(self, name: str, meaning: str, labels: Iterable[str] = ()) -> Gauge:
        """A number that comes and goes."""
        return Gauge(name, meaning, tuple(labels), registry=self._registry)

    def histogram(
        self,
        name: str,
        meaning: str,
        labels: Iterable[str] = (),
        *,
        bounds: Iterable[float] = LATENCY_S,
    ) -> Histogram:
        """A distribution; ``name`` ends in its unit, such as ``_seconds``."""
        return Histogram(
            name, meaning, tuple(labels), registry=self._registry, buckets=tuple(bounds)
        )

    def computed(
        self, name: str, meaning: str, label: str, read: Callable[[], dict[str, float]]
    ) -> None:
        """A gauge per value of ``label``, read when it is asked for; ``read`` must be cheap."""
        self._registry.register(_Computed(name, meaning, label, read))

    def render(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)


class _Computed:
    """A collector around a function."""

    def __init__(
        self,
        name: str,
        meaning: str,
        label: str,
        read: Callable[[], dict[str, float]],
    ) -> None:
        self._name, self._meaning, self._label, self._read = name, meaning, label, read

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """See ``prometheus_client.registry.Collector``."""
        family = GaugeMetricFamily(self._name, self._meaning, labels=[self._label])
        for value, number in self._read().items():
            family.add_metric([value], number)
        yield family
