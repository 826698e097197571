"""When the service, or a proxy before it, wants to be asked again."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def of_header(value: str | None) -> float | None:
    """Read ``Retry-After``: seconds or an HTTP date; None where it says nothing that makes sense."""
    if value is None:
        return None
    try:
        return of_seconds(float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def of_seconds(seconds: object) -> float | None:
    """Read a number of seconds; 0 says nothing, as the contract has it, and nor does what is no time."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        return None
    return float(seconds) if seconds > 0 and math.isfinite(seconds) else None
