"""KServe's V1 protocol: one body with many `instances`, one answer with as many results.

An instance is the JSON of the plain request, so all that can be asked of one picture can be asked of each;
its picture may also be wrapped as KServe wraps bytes, ``{"b64": "…"}``. The protocol knows no error of a
single instance: the first that is wrong fails the request, and the error's field says which one it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from whybox_proto.errors import ContractError, shorten, unknown_name
from whybox_service import pictures
from whybox_service.rest import json_in

INSTANCES = "instances"
# As many pictures as one request may bring, and as many of them as are with the workers at one time.
MAX_INSTANCES = 32
CONCURRENT_INSTANCES = 4

_B64 = "b64"

M = TypeVar("M", bound=Message)


class Batch(Generic[M]):
    """What one JSON body asks: the instances of KServe V1, or the plain request.

    Attributes:
        messages: what each instance asks; empty where the body is a plain one, or not yet read.
    """

    def __init__(self, make: Callable[[], M]) -> None:
        self._make = make
        self.messages: list[M] = []

    def read(self, value: Any, message: Message) -> None:
        """Read a parsed body: its instances into `messages`, or the plain request into `message`.

        Raises:
            ContractError: for whatever is wrong; paths within an instance begin with ``instances[i]``.
        """
        if isinstance(value, dict) and INSTANCES in value:
            self.messages = _read_instances(value, self._make)
        else:
            json_in.read_message(value, message)


def _read_instances(value: dict[str, Any], make: Callable[[], M]) -> list[M]:
    for name in value:
        if name != INSTANCES:
            raise unknown_name("unknown_field", "field", name, [INSTANCES], field=shorten(name))
    given = value[INSTANCES]
    if not isinstance(given, list) or not 0 < len(given) <= MAX_INSTANCES:
        raise ContractError(
            "invalid_argument",
            "the request's instances cannot be taken",
            field=INSTANCES,
            expected=f"a list of 1 to {MAX_INSTANCES} instances",
            got=f"a list of {len(given)}" if isinstance(given, list) else shorten(type(given).__name__),
        )
    read = []
    for i, instance in enumerate(given):
        message = make()
        json_in.read_message(_unwrapped(instance, _path(i)), message, _path(i))
        read.append(message)
    return read


async def perform_all(
    messages: list[M], perform: Callable[[M], Awaitable[Message]], max_bytes: int
) -> list[Message]:
    """Perform an operation on each instance, a few at a time, and return the answers in the same order.

    Args:
        messages: what is asked.
        perform: answers one of them.
        max_bytes: bytes that all answers together may have, counted as protobuf.

    Raises:
        ContractError: that of the instance that failed; the others are then given up.
    """
    turns = asyncio.Semaphore(CONCURRENT_INSTANCES)
    answers: dict[int, Message] = {}
    size = 0

    async def answer(i: int, message: M) -> None:
        nonlocal size
        async with turns:
            try:
                answers[i] = await perform(message)
            except ContractError as error:
                raise _of_instance(error, i) from error
            size += answers[i].ByteSize()
            if size > max_bytes:
                raise ContractError(
                    "response_too_large",
                    f"the answers would be too large: send fewer instances, or {pictures.ASK_FOR_LESS}",
                    field=INSTANCES,
                    expected=f"at most {max_bytes} bytes in all",
                    got=f"{size} bytes for {len(answers)} of {len(messages)} instances",
                )

    try:
        async with asyncio.TaskGroup() as group:
            for i, message in enumerate(messages):
                group.create_task(answer(i, message))
    except ExceptionGroup as failed:
        expected = [error for error in failed.exceptions if isinstance(error, ContractError)]
        if not expected:
            raise
        raise expected[0] from None
    return [answers[i] for i in range(len(messages))]


def _path(i: int) -> str:
    """Return the path of an instance in the request."""
    return f"{INSTANCES}[{i}]"


def _unwrapped(instance: Any, where: str) -> Any:
    """Return an instance with its picture as the plain body has it."""
    image = instance.get("image") if isinstance(instance, dict) else None
    if not isinstance(image, dict):
        return instance
    for name in image:
        if name != _B64:
            raise unknown_name("unknown_field", "field", name, [_B64], field=shorten(f"{where}.image.{name}"))
    if not isinstance(image.get(_B64), str):
        raise ContractError(
            "invalid_argument",
            f"{where}.image has no bytes",
            field=f"{where}.image.{_B64}",
            expected="bytes in base64",
        )
    return {**instance, "image": image[_B64]}


def _of_instance(error: ContractError, i: int) -> ContractError:
    """Say of an error which instance it is about; one of the path or of the service stays as it is."""
    if not error.field or (error.type, error.field) == ("unknown_model", "model"):
        return error
    return ContractError(
        error.type,
        error.message,
        field=f"{_path(i)}.{error.field}",
        expected=error.expected,
        got=error.got,
        retry_after=error.retry_after,
    )
