"""Whether anybody still waits for an answer; asked between two parts of the work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from whybox_proto.departures import Departures


class NobodyWaitsError(Exception):
    """The deadline has passed, or the client has gone."""


@dataclass(frozen=True)
class Patience:
    """How long one request is worth working on.

    Attributes:
        deadline: seconds since the epoch; 0 for none.
        call_id: of the gateway's call; empty where it cannot be called off.
        departures: where the gateway says that a client has gone.
    """

    deadline: float = 0.0
    call_id: str = ""
    departures: Departures = field(default_factory=lambda: Departures(None))

    def check(self) -> None:
        """Stop where nobody waits any more.

        Raises:
            NobodyWaitsError: when that is so.
        """
        if self.deadline and time.time() > self.deadline:
            raise NobodyWaitsError("the deadline has passed")
        if self.departures.told(self.call_id):
            raise NobodyWaitsError("the client has gone")
