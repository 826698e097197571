"""The gateway process: REST and gRPC in one event loop.

``python -m whybox_service.app`` runs it alone, in front of a TorchServe that is already there; its settings
come from the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from whybox_service import addresses
from whybox_service.backend import Backend
from whybox_service.catalogue import Catalogue
from whybox_service.metrics import Metrics
from whybox_service.operations import Operations
from whybox_service.rest.app import create
from whybox_service.rpc.server import RpcServer
from whybox_service.rpc.servicer import Servicer
from whybox_service.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Addresses:
    """Where the gateway listens."""

    rest: str
    grpc: str


class _HttpServer(uvicorn.Server):
    """uvicorn, with the signals left to the gateway, which has a second server to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Gateway:
    """Both servers and what they share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._backend = Backend(settings)
        self._catalogue = Catalogue(self._backend, settings)
        metrics = Metrics(self._catalogue.knows)
        operations = Operations(self._backend, self._catalogue, settings)
        self.app: FastAPI = create(settings, operations, self._catalogue, metrics)
        self._rpc = RpcServer(Servicer(operations, metrics, settings), settings)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Addresses]:
        """Serve while the block lasts; then let running requests finish, both servers at once."""
        settings = self.settings
        listener = addresses.listen(settings.host, settings.port)
        http = _HttpServer(
            uvicorn.Config(
                self.app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
            )
        )
        async with asyncio.TaskGroup() as tasks:
            grpc_port = await self._rpc.start(settings.host, settings.grpc_port)
            watching = tasks.create_task(self._catalogue.watch(self._rpc.tell))
            serving = tasks.create_task(http.serve([listener]))
            host = addresses.reachable(settings.host)
            try:
                while not http.started and not serving.done():
                    await asyncio.sleep(0.01)
                yield Addresses(
                    rest="http://" + addresses.join(host, listener.getsockname()[1]),
                    grpc=addresses.join(host, grpc_port),
                )
            finally:
                watching.cancel()
                http.should_exit = True
                await asyncio.gather(serving, self._rpc.stop(settings.shutdown_seconds))
                await self._backend.close()


async def serve(settings: Settings) -> None:
    """Run the gateway until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with Gateway(settings).running() as listening:
        log.info("REST on %s, gRPC on %s", listening.rest, listening.grpc)
        if settings.address_file is not None:
            write_json(settings.address_file, {"rest": listening.rest, "grpc": listening.grpc})
        await stop.wait()
        log.info("stopping")


def write_json(path: Path, value: object) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value))
    os.replace(partial, path)


def main() -> int:
    """Run the gateway with the settings of the environment."""
    settings = Settings()
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.run(serve(settings))
        return 0
    asyncio.run(serve(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
