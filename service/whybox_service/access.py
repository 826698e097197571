"""Who may come in: what is open to everybody, and where the gateway dares to listen."""

from __future__ import annotations

import ipaddress
import logging
import socket

from whybox_service.keys import Keys
from whybox_service.settings import Settings

log = logging.getLogger(__name__)

#: What needs no key, by the operation's name: probes, the description of the API, the playground's own files.
#: On gRPC: health and reflection, which are services of their own.
OPEN_OPERATIONS = frozenset({"healthz", "readyz", "openapi", "docs", "playground"})


class ExposedError(ValueError):
    """The gateway would let strangers in; the message says how it would not."""


def needs_key(operation: str, settings: Settings) -> bool:
    """Return whether an operation is for those alone who have a key, given that there are keys.

    What stands in no table, as the operation of an address that is not there, needs one.
    """
    return operation not in OPEN_OPERATIONS and not (operation == "metrics" and settings.open_metrics)


def check_exposure(settings: Settings, keys: Keys) -> None:
    """Refuse to listen where strangers reach a service without keys; warn of keys that travel in the open.

    Raises:
        ExposedError: where the host is not loopback, there is no key, and nobody said that this is meant.
    """
    if is_loopback(settings.host):
        return
    if not keys.required and not settings.allow_anonymous:
        raise ExposedError(
            f"{settings.host or 'every address'} is not loopback, and there are no API keys: whoever reaches "
            "this machine could use the service. Make a key with `whybox keys new NAME --file FILE` and set "
            "WHYBOX_API_KEYS_FILE=FILE, or let everybody in with WHYBOX_ALLOW_ANONYMOUS=true"
        )
    if not keys.required:
        log.warning("listening on %s without API keys: everybody who reaches it is let in", settings.host)
    elif settings.tls_certificate is None:
        log.warning(
            "listening on %s without TLS: API keys and pictures can be read on the way, unless a proxy in "
            "front speaks TLS",
            settings.host,
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host; a name must stand for loopback alone."""
    try:
        return _is_loopback(host)
    except ValueError:
        pass
    if not host:
        return False
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(_is_loopback(str(address[0])) for *_, address in found)


def _is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
