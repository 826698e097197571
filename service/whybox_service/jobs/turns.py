"""Whose step is next: few of a model's workers have steps at one time, so that others find one free."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from whybox_proto.v1 import types_pb2
from whybox_service.admission import Lane
from whybox_service.calls import Deadline


class Turns:
    """Lets steps to a model's workers in the order in which they came: half of the workers at most, but one.

    Args:
        workers: says how many workers of a model could work now.
    """

    def __init__(self, workers: Callable[[types_pb2.Model], int]) -> None:
        self._workers = workers
        self._lanes: dict[tuple[str, str], Lane] = {}

    @asynccontextmanager
    async def turn(self, model: types_pb2.Model, deadline: Deadline) -> AsyncIterator[None]:
        """Wait for a step's turn, which lasts as long as the block.

        Raises:
            ContractError: `deadline_exceeded`.
        """
        key = (model.name, model.version)
        if (lane := self._lanes.get(key)) is None:
            lane = self._lanes[key] = Lane(model.name, 1, 0, lambda *_: None)
        lane.resize(self._workers(model) // 2)
        await lane.enter(deadline, admitted=True)
        try:
            yield
        finally:
            lane.leave()
