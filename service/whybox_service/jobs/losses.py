"""What one step has cost others so far: workers that ended while they had it, or all of TorchServe.

A step that ends whatever works on it must not be tried for ever: each time takes the model, or all models,
from everyone else. What ends for another reason, such as a restart by an operator, ends once and not at each
try, so a few losses are no proof, and many are.
"""

from __future__ import annotations

from collections import deque

from whybox_proto.errors import ContractError
from whybox_service.backend import WorkerLostError

# Workers that one step may end while they have it, and so often TorchServe; then it is given up.
LOST_LIMIT = 5


class Losses:
    """Of one step, counted by the one thread that tries it."""

    def __init__(self) -> None:
        self._workers = 0
        self._services = 0
        self._away = False
        # Of tries that nobody waits for any more, from other threads.
        self._late: deque[WorkerLostError] = deque()

    def late(self, error: WorkerLostError) -> None:
        """Note how a try ended that was given up before: TorchServe ends what hangs minutes later."""
        self._late.append(error)

    def count(self, error: ContractError) -> None:
        """Count how a try ended, and what was noted of earlier ones.

        However many tries one end of TorchServe has broken off, it counts once: there is none after it before
        `is_back` was said.
        """
        lost = [error] if isinstance(error, WorkerLostError) else []
        while self._late:
            lost.append(self._late.popleft())
        self._workers += sum(each.died for each in lost)
        if not self._away and any(each.broken for each in lost):
            self._services += 1
            self._away = True

    def is_back(self) -> None:
        """Say that TorchServe, with a worker, was seen after it had been lost."""
        self._away = False

    @property
    def away(self) -> bool:
        """Whether TorchServe was lost and has not been seen since."""
        return self._away

    @property
    def too_many(self) -> str:
        """What was lost, in words, where that is enough; else empty."""
        if self._workers >= LOST_LIMIT:
            return f"{self._workers} workers ended"
        if self._services >= LOST_LIMIT:
            return f"TorchServe ended {self._services} times"
        return ""
