"""The gateway process: REST and gRPC in one event loop.

``python -m whybox_service.app`` runs it alone, in front of a TorchServe that is already there; its settings
come from the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass

import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import ValidationError

from whybox_service import addresses, logs
from whybox_service.access import ExposedError, check_exposure
from whybox_service.backend import Backend
from whybox_service.catalogue import Catalogue
from whybox_service.files import write_json
from whybox_service.intake import Intake
from whybox_service.jobs.database import JobsError
from whybox_service.jobs.inversions import DBOS_THREAD_NAME, THREAD_NAME
from whybox_service.keys import Keys, KeysError
from whybox_service.metrics import Metrics
from whybox_service.operations import Operations
from whybox_service.rest.app import create
from whybox_service.rest.http import protocol
from whybox_service.rpc.server import RpcServer
from whybox_service.rpc.servicer import Servicer
from whybox_service.settings import Settings
from whybox_service.tls import Tls, TlsError
from whybox_service.traces import Tracing

log = logging.getLogger(__name__)

_THREADS_SECONDS = 2.0


@dataclass(frozen=True)
class Addresses:
    """Where the gateway listens.

    Attributes:
        rest: URL of REST.
        grpc: host and port of gRPC.
        tls: whether both speak TLS.
    """

    rest: str
    grpc: str
    tls: bool


class _HttpServer(uvicorn.Server):
    """uvicorn, with the signals left to the gateway, which has a second server to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Gateway:
    """Both servers and what they share.

    Raises:
        KeysError, TlsError: where keys or certificates cannot be used.
        ExposedError: where strangers would be let in.
        JobsError: where the settings of jobs cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        keys = Keys.from_settings(settings)
        check_exposure(settings, keys)
        self._tls = Tls.from_settings(settings)
        self._backend = Backend(settings)
        self._catalogue = Catalogue(self._backend, settings)
        metrics = Metrics(
            self._catalogue.knows, self._catalogue.workers, lambda: self._catalogue.readiness().ready
        )
        tracing = Tracing.from_settings(settings)
        operations = Operations(self._backend, self._catalogue, metrics, tracing, settings)
        intake = Intake(settings, keys, metrics, tracing)
        self._inversions = operations.inversions
        self.app: FastAPI = create(settings, operations, self._catalogue, metrics, intake)
        self._rpc = RpcServer(
            Servicer(operations, metrics, intake, settings.max_request_bytes), keys, settings
        )

    async def conflict(self) -> None:
        """Wait until it shows that another gateway is where this one is meant to be, if it does.

        Raises:
            ConflictError: then.
        """
        await self._inversions.conflict()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Addresses]:
        """Serve while the block lasts; then let running requests finish, both servers at once.

        Raises:
            OSError: where an address cannot be listened on.
        """
        settings = self.settings
        with contextlib.closing(addresses.listen(settings.host, settings.port)) as listener:
            grpc_port = await self._rpc.start(settings.host, settings.grpc_port, self._tls)
            config = uvicorn.Config(
                self.app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                # Nothing asks for a client's address, so no header that names one is believed.
                proxy_headers=False,
                ws="none",
                http=protocol(settings.header_seconds, settings.idle_seconds, settings.body_seconds),
                timeout_keep_alive=round(settings.idle_seconds),
                timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
            )
            config.load()
            if self._tls is not None:
                config.ssl = self._tls.context()
            http = _HttpServer(config)
            serving = asyncio.create_task(http.serve([listener]))
            watching = asyncio.create_task(self._catalogue.watch(self._rpc.tell))
            host = addresses.reachable(settings.host)
            port = listener.getsockname()[1]
            try:
                while not http.started and not serving.done():
                    await asyncio.sleep(0.01)
                await self._inversions.begin()
                scheme = "https" if self._tls else "http"
                yield Addresses(
                    f"{scheme}://{addresses.join(host, port)}",
                    addresses.join(host, grpc_port),
                    self._tls is not None,
                )
            finally:
                watching.cancel()
                http.should_exit = True
                await asyncio.gather(
                    serving, self._rpc.stop(settings.shutdown_seconds), self._inversions.stop()
                )
                await asyncio.gather(watching, return_exceptions=True)
                await self._backend.close()


async def serve(settings: Settings) -> None:
    """Run the gateway until SIGINT or SIGTERM.

    Raises:
        ConflictError: where another gateway is where this one is meant to be.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    gateway = Gateway(settings)
    async with gateway.running() as listening:
        log.info("REST on %s, gRPC%s on %s", listening.rest, " with TLS" * listening.tls, listening.grpc)
        if settings.address_file is not None:
            write_json(settings.address_file, asdict(listening))
        ends = [asyncio.create_task(stop.wait()), asyncio.create_task(gateway.conflict())]
        done, waiting = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in waiting:
            end.cancel()
        log.info("stopping")
        for end in done:
            end.result()


def main() -> int:
    """Run the gateway with the settings of the environment; return the exit code."""
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors(include_input=False, include_context=False):
            name = "_".join(map(str, problem["loc"])).upper()
            print(f"whybox: WHYBOX_{name}: {problem['msg']}", file=sys.stderr)
        return 1
    logs.configure(settings.log_level, settings.log_format)
    try:
        uvloop.run(serve(settings))
    except (OSError, KeysError, TlsError, ExposedError, JobsError) as error:
        print(f"whybox: {error}", file=sys.stderr)
        return 1
    _leave_threads_behind()
    return 0


def _leave_threads_behind() -> None:
    """End the process where threads wait for a database that does not answer, which Python would wait for."""
    until = time.monotonic() + _THREADS_SECONDS
    for thread in threading.enumerate():
        if thread.name.startswith((THREAD_NAME, DBOS_THREAD_NAME)):
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                log.warning("the database of jobs does not answer; what waits for it is left")
                logging.shutdown()
                os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
