"""The seam under the clients: a method that sends a call and returns its reply, or yields its replies."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from typing import Protocol
from urllib.parse import urlsplit

from whybox_client.transports.credentials import Credentials
from whybox_client.transports.lines import Line
from whybox_client.wire import Call, Reply

ANONYMOUS = Credentials()


class Transport(Protocol):
    """Sends calls and waits.

    `send` waits at most about `timeout` seconds, and raises a `WhyboxError` for whatever goes wrong, the
    errors of foreign libraries included; or a `HungUpError` if the line hangs up meanwhile, or the
    transport is closed.
    """

    def send(self, call: Call, timeout: float, line: Line) -> Reply: ...

    def stream(self, call: Call, timeout: float, line: Line) -> Generator[Reply, None, None]:
        """Send a call and yield its replies as they come; closing the generator closes the connection.

        `timeout` is for all of them together.
        """
        ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same for asyncio; who cancels the task hangs up."""

    async def send(self, call: Call, timeout: float) -> Reply: ...

    def stream(self, call: Call, timeout: float) -> AsyncGenerator[Reply, None]: ...

    async def aclose(self) -> None: ...


def connect(url: str, credentials: Credentials = ANONYMOUS) -> Transport:
    """Choose the transport that a URL names. Nothing is sent yet.

    Raises:
        ValueError: for a URL that names none, or a certificate that cannot be used.
    """
    if _speaks_grpc(url):
        from whybox_client.transports.rpc import RpcTransport

        return RpcTransport(url, credentials)
    from whybox_client.transports.rest import RestTransport

    return RestTransport(url, credentials)


def connect_async(url: str, credentials: Credentials = ANONYMOUS) -> AsyncTransport:
    """Choose the asyncio transport that a URL names. Nothing is sent yet.

    Raises:
        ValueError: for a URL that names none, or a certificate that cannot be used.
    """
    if _speaks_grpc(url):
        from whybox_client.transports.rpc import AsyncRpcTransport

        return AsyncRpcTransport(url, credentials)
    from whybox_client.transports.rest import AsyncRestTransport

    return AsyncRestTransport(url, credentials)


def _speaks_grpc(url: str) -> bool:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("a URL has no user and no password; the key is `api_key`, or WHYBOX_API_KEY")
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
        raise ValueError(
            "a URL is http://HOST:PORT or grpc://HOST:PORT, with TLS https://HOST:PORT or grpcs://HOST:PORT; "
            f"got {url!r}"
        )
    if parts.scheme in ("grpc", "grpcs"):
        if parts.path not in ("", "/") or parts.port is None:
            raise ValueError(f"a gRPC URL is {parts.scheme}://HOST:PORT and nothing more; got {url!r}")
        return True
    return False
