"""Checks of a running service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from whybox_client.doctor.findings import Finding

if TYPE_CHECKING:
    from whybox_client import Client

_PATIENCE_S = 10.0


def reachable(url: str, connect: Callable[..., Client]) -> Iterator[Finding]:
    """Check that a service answers, knows us, and that its models are ready."""
    from whybox_client import errors

    with connect(url, timeout=_PATIENCE_S, retries=0) as client:
        start = time.monotonic()
        try:
            models = client.models()
        except errors.WhyboxError as error:
            yield Finding("service", "problem", f"{url}: {error.message}", _mend(error))
            return
        milliseconds = 1000 * (time.monotonic() - start)
        ready = client.ready(timeout=_PATIENCE_S)
    waiting = [model.name for model in models if not model.ready]
    if not models:
        yield Finding(
            "service", "problem", f"{url} answers, and serves no model", "put archives into its model store"
        )
    elif waiting or not ready:
        yield Finding(
            "service",
            "problem",
            f"{url} answers, and is not ready: {', '.join(waiting) or 'it says no more'}",
            "wait for the models to load; if they do not, the service's log says why",
        )
    else:
        names = ", ".join(model.name for model in models)
        yield Finding("service", "ok", f"{url} answers in {milliseconds:.0f} ms; ready: {names}")


def _mend(error: Exception) -> str:
    from whybox_client import errors

    if isinstance(error, errors.UnauthenticatedError):
        return "set WHYBOX_API_KEY to a key of the service's"
    if isinstance(error, errors.ConnectionFailedError):
        return "start it there with whybox serve, or name another with --url"
    if isinstance(error, errors.InvalidAnswerError | errors.NotFoundError):
        return "something else listens there: name whybox's address with --url"
    return "look into the service's log"
