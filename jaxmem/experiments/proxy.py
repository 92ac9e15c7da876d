"""Serve live streams on many devices or hosts under one address: a proxy before many servers.

    python -m jaxmem.experiments.proxy --to http://one:8000 --to http://two:8000
    python -m jaxmem.experiments.proxy --ray 8 --gpus 1 -- --model DIR --saves /shared/sessions

It speaks what the servers speak. A session stays on one of them; when that is lost, it goes on at
another one from its last save. It needs the extra serve, and ray for --ray. See docs/scale.md.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from jaxmem.experiments.parsing import parse, refusing, shown
from jaxmem.experiments.serve import EXTRA, TOKEN, ServeConfig, check_reached, configured
from jaxmem.serve.limits import Limits

REST = "--"
"""Arguments after it are those of the servers."""


@dataclass(frozen=True)
class ProxyConfig:
    """Serve what many servers serve, under one address. The guide is docs/scale.md."""

    # Address of a server (`jaxmem serve --replica`), as http://HOST:PORT; once for each.
    to: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    ray: int = 0  # servers that Ray starts in place of those; arguments after -- are theirs
    gpus: float = 0.0  # of each of them
    cpus: float = 1.0  # of each of them
    host: str = "127.0.0.1"  # address that is listened on
    port: int = 8000  # 0: any that is free
    token: str | None = None  # that clients give and servers take; also the variable JAXMEM_TOKEN
    patience: float = 10.0  # seconds without an answer after which a server counts as lost
    config: Path | None = None  # Python file whose get_config() gives values to start from


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; return the exit status (0, or 2 for bad arguments)."""
    return refusing(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> None:
    words = list(argv)
    at = words.index(REST) if REST in words else len(words)
    config = parse(ProxyConfig, words[:at], **shown("proxy", __doc__))
    proxy(config, check(config, words[at + 1 :]))


def check(config: ProxyConfig, rest: Sequence[str]) -> ServeConfig | None:
    """Refuse what makes no sense before anything is started; return what Ray's servers serve.

    Raises:
      ValueError: naming the option.
    """
    if bool(config.to) == (config.ray > 0):
        raise ValueError(
            f"give either addresses (--to http://HOST:PORT) or --ray with a number of servers; got "
            f"{len(config.to)} addresses and --ray {config.ray}."
        )
    for address in config.to:
        if not address.startswith("http://") or len(address.rstrip("/").split("/")) != 3:
            raise ValueError(f"--to is http://HOST:PORT, got {address!r}.")
    if len(set(config.to)) < len(config.to):
        raise ValueError("--to names an address twice: name each server once.")
    if not 0 < config.patience < float("inf"):
        raise ValueError(f"--patience must be positive, got {config.patience}.")
    if min(config.gpus, config.cpus) < 0:
        raise ValueError(f"--gpus and --cpus are not negative, got {config.gpus}, {config.cpus}.")
    if config.port not in range(65_536):
        raise ValueError(f"--port must be from 0 to 65535, got {config.port}.")
    check_reached(config.host, config.token)
    if config.to:
        if rest:
            raise ValueError(f"{REST} {' '.join(rest)}: servers of --to have been started already.")
        return None
    servers = configured(rest)
    if servers.saves is None:
        raise ValueError(f"give Ray's servers a folder that all of them see: {REST} --saves DIR.")
    return servers


def proxy(config: ProxyConfig, servers: ServeConfig | None) -> None:
    """Serve until a signal ends it.

    Args:
      config: of the proxy.
      servers: what Ray's servers serve; None: there are others.

    Raises:
      ValueError: if the address cannot be had, or Ray's servers do not start.
    """
    try:
        from jaxmem.serve.proxy.app import make_app
        from jaxmem.serve.running import Simple, config_of, listening
    except ImportError as error:
        raise ValueError(f"{EXTRA} ({error})") from error
    token = config.token or os.environ.get(TOKEN) or None
    limits = Limits()
    with listening(config.host, config.port) as listener, ExitStack() as stack:
        places: Mapping[str, str | None] = {x.rstrip("/"): x.rstrip("/") for x in config.to}
        inner, started = token, None
        if servers is not None:
            from jaxmem.experiments.ray_servers import RayServers

            inner = token or secrets.token_urlsafe(16)
            resources = {"num_cpus": config.cpus, "num_gpus": config.gpus}
            served = replace(servers, token=inner, replica=True, port=0)
            started = stack.enter_context(RayServers(config.ray, served, resources))
            places = started.places
        more = {"token": token, "inner": inner, "host": config.host, "limits": limits}
        app = make_app(places, patience=config.patience, **more)
        if started is not None:
            started.keep(app.state.replicas)
        connections = 4 * limits.connections * len(places)
        server = Simple(config_of(app, limits, connections))
        host, port = listener.getsockname()[:2]
        where = f"[{host}]" if ":" in host else host
        print(f"{len(places)} servers on http://{where}:{port}/", flush=True)
        asyncio.run(server.serve([listener]))


if __name__ == "__main__":
    sys.exit(main())
