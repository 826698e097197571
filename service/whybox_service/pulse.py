"""Whether a model's workers still answer.

A worker that lives answers everything that it has, at the latest a little after the last deadline of it all,
and then that it is late. A request may be answered long after its own deadline, because one with more time
stands before it or shares its batch. So workers hang when all that is out is overdue, and nothing has come
since the last of it was due.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Pulse:
    """What is out to the workers of one model, and when one of them was last heard.

    Args:
        clock: seconds on a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[object, tuple[float, Callable[[], object]]] = {}
        self._heard = clock()
        self._stalled = False

    @property
    def busy(self) -> bool:
        """Whether a worker owes an answer that is not overdue, and so will tell."""
        return bool(self._due) and self._last_due() > self._clock()

    def sent(self, due: float, give_up: Callable[[], object] = lambda: None) -> object:
        """Note a request whose answer a live worker has given by the moment `due`; return its token.

        `give_up` is called where the answer is lost: the workers had fallen silent, and are heard again.
        """
        self._look()  # or this request's own time would hide that all others are overdue
        token = object()
        self._due[token] = (due, give_up)
        return token

    def ended(self, token: object, *, heard: bool) -> None:
        """Note the end of a request, and whether it was a worker that ended it."""
        if not heard:
            self._look()
        del self._due[token]
        if heard:
            self.renew()

    def renew(self) -> None:
        """Forget the silence: a worker was heard, or the workers are others now."""
        self._heard = self._clock()
        if self._stalled:
            self._stalled = False
            for due, give_up in list(self._due.values()):
                if due < self._heard:
                    give_up()

    def silent_for(self) -> float:
        """Seconds since a worker was heard, where one should have been; 0 where all is well.

        A model that has fallen silent stays so until a worker is heard, or there are other workers.
        """
        self._look()
        return self._clock() - self._heard if self._stalled else 0.0

    def _look(self) -> None:
        if self._due:
            self._stalled |= self._heard < self._last_due() < self._clock()

    def _last_due(self) -> float:
        return max(due for due, _ in self._due.values())
