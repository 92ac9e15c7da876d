"""Servers that Ray starts where there is room, and starts again when they die."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jaxmem.experiments.serve import ServeConfig, serve

if TYPE_CHECKING:
    from jaxmem.serve.proxy.replicas import Replicas

NAMESPACE = "jaxmem"
STARTING_SECONDS = 3600.0
"""That a server gets to load its model."""
LOOK_SECONDS = 1.0
STOP_SECONDS = 60.0
"""That servers get to save their sessions, beside the seconds for answers."""


class Actor:
    """A server in a process of Ray's."""

    def __init__(self, config: ServeConfig):
        """Begin to serve on the address of this host."""
        import ray  # pyright: ignore[reportMissingImports]

        self._config = replace(config, host=ray.util.get_node_ip_address())
        self._address, self._error = "", ""
        self._began, self._stop, self._stopping = threading.Event(), lambda: None, False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        def began(address: str, stop: Any) -> None:
            self._address, self._stop = address, stop
            self._began.set()

        try:
            serve(self._config, began)
        except Exception as error:
            self._error = str(error)
        if self._began.is_set() and not self._stopping:
            os._exit(1)  # Ray starts another one
        self._began.set()

    def address(self) -> tuple[str, str]:
        """Return where it is served, once it is; or nothing, and why it is not."""
        self._began.wait()
        return self._address, self._error

    def stop(self) -> None:
        """End it in order: its sessions are saved."""
        self._stopping = True
        self._stop()
        self._thread.join()


class RayServers:
    """Servers by name, on whatever hosts a Ray cluster has.

    Attributes:
      places: their addresses.
    """

    def __init__(self, count: int, config: ServeConfig, resources: Mapping[str, float]):
        """Start so many; each has the resources, as Ray names them (num_cpus, num_gpus).

        Raises:
          ValueError: if Ray is not installed, or a server does not start.
        """
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise ValueError(
                "--ray needs the extra ray: pip install 'jaxmem[serve,ray]'."
            ) from None
        self._ray, self._grace = ray, config.grace
        ray.init(namespace=NAMESPACE, ignore_reinit_error=True, log_to_driver=False)
        config = replace(config, saves=None if config.saves is None else config.saves.absolute())
        options = {"max_concurrency": 4, "max_restarts": -1, **resources}
        self._actors = {
            name: ray.remote(Actor).options(name=name, **options).remote(config)
            for name in (f"ray-{number}" for number in range(count))
        }
        self._ended = threading.Event()
        self.places: dict[str, str | None] = {}
        try:
            for name, one in self._actors.items():
                address, error = ray.get(one.address.remote(), timeout=STARTING_SECONDS)
                if not address:
                    raise ValueError(f"{name} could not be started: {error}")
                self.places[name] = address
        except BaseException as error:
            self.close()
            if isinstance(error, ray.exceptions.RayError):
                raise ValueError(f"Ray could not start the servers: {error}") from error
            raise

    def keep(self, replicas: Replicas) -> None:
        """Tell a proxy's replicas, from now on, where those are that Ray has started again."""
        by_name = {one.name: one for one in replicas.all}

        def look() -> None:
            while not self._ended.wait(LOOK_SECONDS):
                for name, one in self._actors.items():
                    try:
                        found = self._ray.get(one.address.remote(), timeout=LOOK_SECONDS)
                    except self._ray.exceptions.RayError:  # it is being started, or never will
                        continue
                    by_name[name].address = found[0] or None

        threading.Thread(target=look, daemon=True).start()

    def close(self) -> None:
        """End all servers in order."""
        self._ended.set()
        stops = [one.stop.remote() for one in self._actors.values()]
        self._ray.wait(stops, num_returns=len(stops), timeout=self._grace + STOP_SECONDS)
        for one in self._actors.values():
            self._ray.kill(one)
        self._ray.shutdown()

    def __enter__(self) -> RayServers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
