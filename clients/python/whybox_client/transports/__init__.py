"""The seam under the clients: one method that sends a call and returns its reply."""

from __future__ import annotations

from typing import Protocol
from urllib.parse import urlsplit

from whybox_client.wire import Call, Reply


class Transport(Protocol):
    """Sends calls and waits.

    `send` waits at most about `timeout` seconds, and raises a `WhyboxError` for whatever goes wrong, the
    errors of foreign libraries included.
    """

    def send(self, call: Call, timeout: float) -> Reply: ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same for asyncio."""

    async def send(self, call: Call, timeout: float) -> Reply: ...

    async def aclose(self) -> None: ...


def connect(url: str) -> Transport:
    """Choose the transport that a URL names. Nothing is sent yet.

    Raises:
        ValueError: for a URL that names none.
    """
    if _speaks_grpc(url):
        from whybox_client.transports.rpc import RpcTransport

        return RpcTransport(urlsplit(url).netloc)
    from whybox_client.transports.rest import RestTransport

    return RestTransport(url)


def connect_async(url: str) -> AsyncTransport:
    """Choose the asyncio transport that a URL names. Nothing is sent yet.

    Raises:
        ValueError: for a URL that names none.
    """
    if _speaks_grpc(url):
        from whybox_client.transports.rpc import AsyncRpcTransport

        return AsyncRpcTransport(urlsplit(url).netloc)
    from whybox_client.transports.rest import AsyncRestTransport

    return AsyncRestTransport(url)


def _speaks_grpc(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https", "grpc") or not parts.hostname:
        raise ValueError(f"a URL is http://HOST:PORT, https://HOST:PORT or grpc://HOST:PORT; got {url!r}")
    if parts.scheme == "grpc":
        if parts.path not in ("", "/") or parts.port is None:
            raise ValueError(f"a gRPC URL is grpc://HOST:PORT and nothing more; got {url!r}")
        return True
    return False
