"""The gRPC server: the service, standard health and reflection."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from whybox_service.addresses import join
from whybox_service.catalogue import Readiness
from whybox_service.rpc.servicer import SERVICE, Servicer
from whybox_service.settings import Settings


class RpcServer:
    """A gRPC server that listens once it is started."""

    def __init__(self, servicer: Servicer, settings: Settings) -> None:
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", settings.max_request_bytes),
                ("grpc.so_reuseport", 0),
            )
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

    async def start(self, host: str, port: int) -> int:
        """Listen; return the port, which the system chooses where it is 0.

        Raises:
            OSError: where the address cannot be listened on.
        """
        await self.tell(Readiness(False, {}))
        try:
            bound = self._server.add_insecure_port(join(host, port))
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
