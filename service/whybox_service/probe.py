"""Asks a service of this machine whether it is ready; what a container's health check runs.

    python -m whybox_service.probe [URL]

The exit status is 0 where every model can answer and 1 where not, with the reasons on standard error. Without
a URL the gateway's own settings say where it is. Proxies of the environment are not asked. The certificate is
not verified: it is this machine's own service, and nothing secret is sent.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any

PATIENCE_SECONDS = 5.0
# So much sooner than this side the service is asked to give up, so that it can say why.
_SLACK_SECONDS = 0.5
_MAX_BYTES = 1 << 20


class HiddenError(Exception):
    """The gateway lives, but demands a client certificate that is not at hand."""


def unready(url: str, seconds: float = PATIENCE_SECONDS) -> dict[str, str]:
    """Ask the gateway at a URL what is not ready: reasons by model, empty where every model can answer.

    Raises:
        HiddenError: where it does not let this side ask.
    """
    try:
        status, body = _get(f"{url}/readyz", seconds)
        if status == 200:
            return {}
        told = json.loads(body)
        reasons = told.get("reasons") or {"gateway": told.get("detail") or f"it answers {status}"}
        return {str(name): str(reason) for name, reason in reasons.items()}
    except OSError as error:
        if _refused(error):
            raise HiddenError("it demands a client certificate, and does not take its own for one") from error
        return {"gateway": str(getattr(error, "reason", error))}
    except (HTTPException, ValueError, AttributeError):
        return {"gateway": "its answer cannot be read"}


def answers(url: str, seconds: float = PATIENCE_SECONDS) -> bool:
    """Say whether a server answers at all, whatever it answers."""
    try:
        _get(url, seconds)
    except OSError as error:
        return _refused(error)
    except HTTPException:
        return False
    return True


def get_json(url: str, seconds: float = PATIENCE_SECONDS) -> Any:
    """Return the JSON at a URL of this machine.

    Raises:
        OSError: where it cannot be had.
        ValueError: where it is none.
    """
    try:
        status, body = _get(url, seconds)
    except HTTPException as error:
        raise OSError(f"{url}: the answer broke off") from error
    if status != 200:
        raise OSError(f"{url}: {status}")
    return json.loads(body)


def own_url() -> str:
    """Return where the gateway with the settings of the environment is reached from this machine."""
    from whybox_service import addresses
    from whybox_service.settings import Settings

    settings = Settings()
    scheme = "https" if settings.tls_certificate else "http"
    return f"{scheme}://{addresses.join(addresses.reachable(settings.host), settings.port)}"


def _get(url: str, seconds: float) -> tuple[int, bytes]:
    # The gateway's answers are short, so there is no limit on the whole besides that on each of its parts.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=_context())
    )
    limit = max(seconds - _SLACK_SECONDS, seconds / 2)
    request = urllib.request.Request(url, headers={"X-Request-Timeout": f"{limit:g}"})
    try:
        with opener.open(request, timeout=seconds) as response:
            return response.status, response.read(_MAX_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(_MAX_BYTES)


def _refused(error: OSError) -> bool:
    """Whether a server told, in a TLS alert, that it wants another certificate of this side, or any."""
    # urllib wraps what fails in the handshake; with TLS 1.3 it is the first read that fails.
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLError) and "ALERT" in str(cause.reason):
        return True
    # The request, sent before the alert is read, may reset the connection, and the alert is lost.
    return bool(os.environ.get("WHYBOX_TLS_CLIENT_CA")) and isinstance(
        cause, ConnectionResetError | BrokenPipeError | ssl.SSLEOFError
    )


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    certificate, key = (os.environ.get(f"WHYBOX_TLS_{name}") for name in ("CERTIFICATE", "KEY"))
    if os.environ.get("WHYBOX_TLS_CLIENT_CA") and certificate:
        # Clients need a certificate; the service's own is the only one that is at hand.
        context.load_cert_chain(certificate, key or None)
    return context


def main(arguments: list[str]) -> int:
    """Ask, and tell the reasons; return the exit status."""
    try:
        reasons = unready(arguments[0].rstrip("/") if arguments else own_url())
    except HiddenError as error:
        reasons = {"gateway": str(error)}
    except ValueError as error:  # of the settings, which do not show their values
        reasons = {"settings": str(error)}
    for name, reason in reasons.items():
        print(f"{name}: {reason}", file=sys.stderr)
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
