"""The gateway process: REST and gRPC in one event loop.

``python -m whybox_service.app`` runs it alone, in front of a TorchServe that is already there; its settings
come from the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import uvicorn
import uvloop
from fastapi import FastAPI

from whybox_service import addresses
from whybox_service.backend import Backend
from whybox_service.catalogue import Catalogue
from whybox_service.files import write_json
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
        """Serve while the block lasts; then let running requests finish, both servers at once.

        Raises:
            OSError: where an address cannot be listened on.
        """
        settings = self.settings
        with contextlib.closing(addresses.listen(settings.host, settings.port)) as listener:
            grpc_port = await self._rpc.start(settings.host, settings.grpc_port)
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
            serving = asyncio.create_task(http.serve([listener]))
            watching = asyncio.create_task(self._catalogue.watch(self._rpc.tell))
            host = addresses.reachable(settings.host)
            port = listener.getsockname()[1]
            try:
                while not http.started and not serving.done():
                    await asyncio.sleep(0.01)
                yield Addresses("http://" + addresses.join(host, port), addresses.join(host, grpc_port))
            finally:
                watching.cancel()
                http.should_exit = True
                await asyncio.gather(serving, self._rpc.stop(settings.shutdown_seconds))
                await asyncio.gather(watching, return_exceptions=True)
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


def main() -> int:
    """Run the gateway with the settings of the environment."""
    settings = Settings()
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        uvloop.run(serve(settings))
    except OSError as error:
        print(f"whybox: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
