"""Hosts and ports."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


def join(host: str, port: int) -> str:
    """Write a host and a port as one; an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """Return where a client on this machine finds a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def listen(host: str, port: int) -> socket.socket:
    """Bind a TCP socket; port 0 takes a free one.

    Raises:
        OSError: where the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"cannot listen on {join(host, port)}: {error.strerror}") from error
    return bound


@contextmanager
def reserved_ports(count: int, host: str = "127.0.0.1") -> Iterator[list[int]]:
    """Choose ports that nobody listens on, and keep them from being given to others while the block lasts.

    Who asks for one of them by its number, and sets SO_REUSEADDR as servers do, gets it (on Linux; elsewhere
    the ports are only free at the moment when they are chosen).

    Raises:
        OSError: where the address cannot be listened on.
    """
    with ExitStack() as stack:
        bound = [stack.enter_context(listen(host, 0)) for _ in range(count)]
        ports = [s.getsockname()[1] for s in bound]
        if not sys.platform.startswith("linux"):
            stack.close()
        yield ports
