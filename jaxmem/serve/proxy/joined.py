"""What all replicas answer together: lists, health, and what Prometheus reads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from jaxmem.serve.http import PATH
from jaxmem.serve.proxy.replica import LOST, OK, STOPPING, LostError, Replica
from jaxmem.serve.proxy.replicas import Replicas

METRICS_SECONDS = 5.0


class Joined:
    """The handlers of what is asked of all replicas."""

    def __init__(self, replicas: Replicas):
        """Ask replicas."""
        self._replicas = replicas

    async def _all(self, path: str, **more: Any) -> list[tuple[Replica, Any]]:
        """Return the answers of all that answer, in their order."""
        found: dict[Replica, Any] = {}

        async def ask(one: Replica) -> None:
            try:
                answer = await one.call("GET", path, **more)
            except LostError:
                await one.check()
                return
            if answer.status_code == 200:
                found[one] = answer

        async with anyio.create_task_group() as tasks:
            for one in self._replicas.reachable:
                tasks.start_soon(ask, one)
        return [(one, found[one]) for one in self._replicas.all if one in found]

    async def sessions(self, request: Request) -> Response:
        """Answer with the sessions of all, and the names of saved ones."""
        del request
        self._replicas.any()
        sessions, saved = [], set()
        for one, answer in await self._all(PATH):
            body = answer.json()
            sessions += [session | {"replica": one.name} for session in body["sessions"]]
            saved |= set(body["saved"])
        return JSONResponse({"sessions": sessions, "saved": sorted(saved)})

    async def health(self, request: Request) -> Response:
        """Answer whether one lives, and how many stand how: who asks may have no token."""
        del request
        status = OK if self._replicas.usable else LOST
        count = sum(one.sessions for one in self._replicas.all)
        states = Counter(one.state for one in self._replicas.all)
        more = {"sessions": count, "replicas": dict(states)}
        return JSONResponse({"status": status, **more}, 200 if status == OK else 503)

    async def metrics(self, request: Request) -> Response:
        """Answer with the numbers of all, each with the name of its replica, and of the proxy."""
        del request
        families: dict[str, Metric] = {}
        for one, answer in await self._all("/metrics", timeout=METRICS_SECONDS):
            for found in text_string_to_metric_families(answer.text):
                family = families.setdefault(
                    found.name, Metric(found.name, found.documentation, found.type)
                )
                for sample in found.samples:
                    labels = {**sample.labels, "replica": one.name}
                    family.samples.append(sample._replace(labels=labels))
        up = GaugeMetricFamily("jaxmem_replica_up", "Whether it answers.", labels=["replica"])
        for one in self._replicas.all:
            up.add_metric([one.name], one.state in (OK, STOPPING))
        text = "Streams that were taken up from a replica that was lost."
        moved = CounterMetricFamily("jaxmem_streams_moved", text, value=self._replicas.moved)
        registry = _Fixed([*families.values(), up, moved])
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)  # type: ignore[arg-type]


class _Fixed:
    """What `generate_latest` reads of a registry."""

    def __init__(self, families: list[Metric]):
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families
