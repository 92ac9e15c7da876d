"""What Prometheus reads: `/metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram
from prometheus_client import generate_latest as generate
from prometheus_client.core import GaugeMetricFamily
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from jaxmem.serve.hub import Hub

SECONDS = (0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counts of a hub's messages, and how its sessions stand when they are read."""

    def __init__(self, hub: Hub):
        """Count what happens in a hub from now on."""
        self._hub, self._registry = hub, CollectorRegistry()
        made: dict[str, Any] = {"registry": self._registry}
        self._answers = Counter("jaxmem_answers", "Answers that have ended.", ["cut"], **made)
        self._ended = Counter("jaxmem_sessions_ended", "Sessions that have ended.", **made)
        self._lost = Counter("jaxmem_sources_lost", "Cameras that broke off.", **made)
        self._alerts = Counter("jaxmem_alerts", "Standing questions that turned to yes.", **made)
        self._first = Histogram(
            "jaxmem_first_token_seconds",
            "From a question to the first token of its answer.",
            buckets=SECONDS,
            **made,
        )
        self._registry.register(self)
        self._before = hub.listener  # another app over the same hub goes on counting
        hub.listener = self.heard

    def heard(self, message: dict[str, Any]) -> None:
        """Count a message of a session."""
        self._before(message)
        kind = message["type"]
        if kind == "response.text.done":
            self._answers.labels(str(message["cut"]).lower()).inc()
            if message["first_token_ms"] is not None:
                self._first.observe(message["first_token_ms"] / 1e3)
        elif kind == "session.ended":
            self._ended.inc()
        elif kind == "source.lost":
            self._lost.inc()
        elif kind == "session.alert":
            self._alerts.inc()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield how the engines and sessions stand, as `prometheus_client` asks for it."""
        engines = ("memory", "budget")
        lanes = GaugeMetricFamily("jaxmem_lanes", "Lanes that there are.", labels=engines)
        taken = GaugeMetricFamily("jaxmem_lanes_taken", "Lanes with a stream.", labels=engines)
        for wanted, (used, count) in self._hub.engines.streams.items():
            lanes.add_metric([wanted.memory, wanted.budget], count)
            taken.add_metric([wanted.memory, wanted.budget], used)
        yield from (lanes, taken)
        yield GaugeMetricFamily(
            "jaxmem_bytes", "Of weights, states and steps.", value=self._hub.engines.nbytes
        )
        yield GaugeMetricFamily("jaxmem_sessions", "Open.", value=len(self._hub.sessions))
        about = {
            "lag": "Seconds of stream that wait to be written.",
            "seconds": "Of stream so far.",
            "chunks": "Written.",
            "dropped": "Chunks that were never written.",
            "questions": "Asked.",
            "nbytes": "Of memory and states.",
        }
        each = [(one.id, one.live.stats._asdict()) for one in self._hub.sessions]
        for name, text in about.items():
            family = GaugeMetricFamily(f"jaxmem_session_{name}", text, labels=["session"])
            for id, stats in each:
                family.add_metric([id], stats[name])
            yield family

    async def show(self, request: Request) -> Response:
        """Answer with all of them."""
        del request
        text = await run_in_threadpool(generate, self._registry)
        return Response(text, media_type=CONTENT_TYPE_LATEST)
