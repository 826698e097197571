"""The gRPC server: the service, standard health and reflection."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from whybox_service.addresses import join
from whybox_service.catalogue import Readiness
from whybox_service.keys import Keys
from whybox_service.rpc.door import OPEN_CHECKS, OPEN_STREAMS, Door
from whybox_service.rpc.servicer import SERVICE, Servicer
from whybox_service.settings import Settings
from whybox_service.tls import Tls

_SLACK_BYTES = 4 << 20
_KEEPALIVE_MS = 60_000
_KEEPALIVE_TIMEOUT_MS = 20_000


class RpcServer:
    """A gRPC server that listens once it is started."""

    def __init__(self, servicer: Servicer, keys: Keys, settings: Settings) -> None:
        self._server = grpc.aio.server(
            interceptors=(Door(keys),),
            options=(
                # What is somewhat too large is refused by the service, with an error of the table.
                ("grpc.max_receive_message_length", settings.max_request_bytes + _SLACK_BYTES),
                ("grpc.so_reuseport", 0),
                # A client that vanished is found out, and a connection that nobody uses is closed.
                ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
                ("grpc.max_connection_idle_ms", round(settings.idle_seconds * 1000)),
            ),
            # Beyond the service's own limit on requests, so that most are refused by it, with advice.
            maximum_concurrent_rpcs=2 * settings.max_requests + OPEN_CHECKS + OPEN_STREAMS,
        )
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]  # the stubs do not know it
        self._server.add_generic_rpc_handlers((servicer.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (
                SERVICE.full_name,
                health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
                reflection.SERVICE_NAME,
            ),
            self._server,
        )

    async def start(self, host: str, port: int, tls: Tls | None = None) -> int:
        """Listen, with TLS where there is some; return the port, which the system chooses where it is 0.

        Raises:
            OSError: where the address cannot be listened on.
        """
        await self.tell(Readiness(False, {}))
        try:
            bound = (
                self._server.add_insecure_port(join(host, port))
                if tls is None
                else self._server.add_secure_port(join(host, port), tls.credentials())
            )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {join(host, port)}: {error}") from error
        await self._server.start()
        return bound

    async def tell(self, readiness: Readiness) -> None:
        """Publish the readiness to clients of grpc.health.v1."""
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if readiness.ready else states.NOT_SERVING
        await self._health.set("", status)
        await self._health.set(SERVICE.full_name, status)

    async def stop(self, seconds: float) -> None:
        """Take no new requests, and give the running ones some seconds to finish."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(seconds)
