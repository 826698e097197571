"""Whether a model's workers still answer.

A worker that is alive answers every request, at the latest a little after the request's deadline, and then
that it is late. So nothing heard since a moment at which an answer was due means that the worker hangs.
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
        now = self._clock()
        return any(due > now for due, _ in self._due.values())

    def sent(self, due: float, give_up: Callable[[], object] = lambda: None) -> object:
        """Note a request whose answer a live worker has given by the moment `due`; return its token.

        `give_up` is called once a worker is heard after that moment: the answer to the request is lost.
        """
        token = object()
        self._due[token] = (due, give_up)
        return token

    def renew(self) -> None:
        """Forget the silence: the workers are others now."""
        self._heard = self._clock()
        self._stalled = False

    def ended(self, token: object, *, heard: bool) -> None:
        """Note the end of a request, and whether it was a worker that ended it."""
        if heard:
            self.renew()
        else:
            self._look()
        del self._due[token]
        if heard:
            for due, give_up in list(self._due.values()):
                if due < self._heard:
                    give_up()

    def silent_for(self) -> float:
        """Seconds since a worker was heard, where one should have been; 0 where all is well.

        A model that has fallen silent stays so until a worker is heard.
        """
        self._look()
        return self._clock() - self._heard if self._stalled else 0.0

    def _look(self) -> None:
        now = self._clock()
        self._stalled |= any(self._heard < due < now for due, _ in self._due.values())
