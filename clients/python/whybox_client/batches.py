"""Many images, a few at a time, answered in their order.

At most `concurrency` calls are under way, and at most twice as many images are ahead of the answer that is
handed out: so one slow image does not idle the others, and a source of any length is read as it is used up.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, Unpack, overload

from whybox_client import defaults, flows
from whybox_client.errors import WhyboxError
from whybox_client.folders import image_files
from whybox_client.images import ImageLike
from whybox_client.results import Detections, Explanation
from whybox_client.settings import DetectSettings, ExplainSettings
from whybox_client.transports.lines import Line
from whybox_client.wire import Flow

T = TypeVar("T")

#: A folder, an image file, or images of any kind.
Images: TypeAlias = "str | os.PathLike[str] | Iterable[ImageLike]"
#: What can go wrong with one image: of the service, of the file, of the pixels.
ImageError: TypeAlias = WhyboxError | OSError | ValueError | TypeError
OnError: TypeAlias = Literal["raise", "return"]

_IMAGE_ERRORS = (WhyboxError, OSError, ValueError, TypeError)


class Batches(ABC):
    """The methods of `Client` that take many images."""

    @abstractmethod
    def _run(self, flow: Flow[T], line: Line) -> T: ...

    @overload
    def explain_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: Literal["raise"] = "raise",
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[ExplainSettings],
    ) -> Generator[Explanation, None, None]: ...
    @overload
    def explain_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: Literal["return"],
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[ExplainSettings],
    ) -> Generator[Explanation | ImageError, None, None]: ...
    def explain_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: OnError = "raise",
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[ExplainSettings],
    ) -> Generator[Explanation | ImageError, None, None]:
        """Explain many images, a few at a time; iterate over what is returned.

        Answers come in the order of the images. Leaving the loop early, Ctrl-C and `close()` of the iterator
        call off what is under way.

        Args:
            model: name of the model.
            images: a folder (its images, sorted by path), or images of any kind that `explain` takes, read
                at most ``2 · concurrency`` ahead.
            on_error: ``raise`` ends with the first error; ``return`` hands it out in the image's place:
                `WhyboxError`, or `OSError`, `ValueError` or `TypeError` for an image that cannot be sent.
            concurrency: most calls under way at one time.
            progress: whether a bar on stderr, or in the notebook, shows how far it is.
            recursive: whether the folders below count too.
            settings: what else `explain` takes; `timeout` and `retries` are for each image.

        Raises:
            TypeError, ValueError: for an argument that cannot be.
            OSError: if the folder cannot be read.
        """
        return _ordered(
            lambda image, line: self._run(flows.explain(model, image, **settings), line),
            *_source(images, recursive),
            _limits(on_error, concurrency),
            progress,
        )

    @overload
    def detect_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: Literal["raise"] = "raise",
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[DetectSettings],
    ) -> Generator[Detections, None, None]: ...
    @overload
    def detect_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: Literal["return"],
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[DetectSettings],
    ) -> Generator[Detections | ImageError, None, None]: ...
    def detect_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: OnError = "raise",
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[DetectSettings],
    ) -> Generator[Detections | ImageError, None, None]:
        """Find the objects in many images, a few at a time; as `explain_many`."""
        return _ordered(
            lambda image, line: self._run(flows.detect(model, image, **settings), line),
            *_source(images, recursive),
            _limits(on_error, concurrency),
            progress,
        )


class AsyncBatches(ABC):
    """The methods of `AsyncClient` that take many images."""

    @abstractmethod
    async def _run(self, flow: Flow[T]) -> T: ...

    @overload
    def explain_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: Literal["raise"] = "raise",
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[ExplainSettings],
    ) -> AsyncGenerator[Explanation, None]: ...
    @overload
    def explain_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: Literal["return"],
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[ExplainSettings],
    ) -> AsyncGenerator[Explanation | ImageError, None]: ...
    def explain_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: OnError = "raise",
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[ExplainSettings],
    ) -> AsyncGenerator[Explanation | ImageError, None]:
        """Explain many images, a few at a time; as `Client.explain_many`, iterated with ``async for``.

        Who leaves the loop early closes the iterator, with `contextlib.aclosing`.
        """
        return _ordered_async(
            lambda image: self._run(flows.explain(model, image, **settings)),
            *_source(images, recursive),
            _limits(on_error, concurrency),
            progress,
        )

    @overload
    def detect_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: Literal["raise"] = "raise",
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[DetectSettings],
    ) -> AsyncGenerator[Detections, None]: ...
    @overload
    def detect_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: Literal["return"],
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[DetectSettings],
    ) -> AsyncGenerator[Detections | ImageError, None]: ...
    def detect_many(
        self,
        model: str,
        images: Images,
        *,
        on_error: OnError = "raise",
        concurrency: int = defaults.CONCURRENCY,
        progress: bool = False,
        recursive: bool = False,
        **settings: Unpack[DetectSettings],
    ) -> AsyncGenerator[Detections | ImageError, None]:
        """Find the objects in many images, a few at a time; as `explain_many`."""
        return _ordered_async(
            lambda image: self._run(flows.detect(model, image, **settings)),
            *_source(images, recursive),
            _limits(on_error, concurrency),
            progress,
        )


class _Pending(Protocol):
    def done(self) -> bool: ...


W = TypeVar("W", bound=_Pending)


class _Bar(Protocol):
    def update(self, n: float = 1, /) -> bool | None: ...

    def set_postfix(self, *, failed: int) -> None: ...


class _Limits:
    """How a batch runs: how much at a time, and what an error does."""

    def __init__(self, on_error: OnError, concurrency: int) -> None:
        self.concurrency = concurrency
        self.raises = on_error == "raise"


def _limits(on_error: OnError, concurrency: int) -> _Limits:
    if on_error not in ("raise", "return"):
        raise ValueError(f"on_error is 'raise' or 'return'; got {on_error!r}")
    if concurrency < 1:
        raise ValueError(f"concurrency is a number from 1; got {concurrency}")
    return _Limits(on_error, concurrency)


def _source(images: Images, recursive: bool) -> tuple[Iterator[ImageLike], int | None]:
    """Return the images, and their number where it is known."""
    if isinstance(images, bytes | bytearray):
        raise TypeError("images is a folder or several images; got the bytes of one")
    if isinstance(images, str | os.PathLike):
        if not os.path.isdir(images):
            os.stat(images)
            return iter([images]), 1
        files = image_files(images, recursive=recursive)
        if not files:
            raise ValueError(f"there are no images in {os.fspath(images)}")
        return iter(files), len(files)
    return iter(images), len(images) if isinstance(images, Sequence) else None


class _Window(Generic[W]):
    """The images whose answers are still to be handed out, in their order: under way, or waiting for it."""

    def __init__(
        self, images: Iterator[ImageLike], start: Callable[[ImageLike], W], concurrency: int
    ) -> None:
        self._images = images
        self._start = start
        self._concurrency = concurrency
        self._exhausted = False
        self._ended: Exception | None = None
        self.under_way: deque[tuple[ImageLike, W]] = deque()

    def due(self) -> tuple[ImageLike, W] | None:
        """Start what may be started, and return the next to be handed out; None at the end.

        Raises:
            Exception: of the source of images, once the answers that came before it are out.
        """
        while not self._exhausted and not self._full():
            try:
                image = next(self._images)
            except StopIteration:
                self._exhausted = True
            except Exception as error:
                self._ended, self._exhausted = error, True
            else:
                self.under_way.append((image, self._start(image)))
        if self.under_way:
            return self.under_way[0]
        if self._ended is not None:
            raise self._ended
        return None

    def _full(self) -> bool:
        """Whether as many are ahead as may be, or an answer is due and others keep the service busy."""
        if len(self.under_way) >= 2 * self._concurrency:
            return True
        busy = sum(not work.done() for _, work in self.under_way)
        return busy >= self._concurrency and self.under_way[0][1].done()


def _ordered(
    work: Callable[[ImageLike, Line], T],
    images: Iterator[ImageLike],
    total: int | None,
    limits: _Limits,
    progress: bool,
) -> Generator[T | ImageError, None, None]:
    line = Line()
    pool = ThreadPoolExecutor(limits.concurrency, "whybox batch")
    window = _Window(images, lambda image: pool.submit(work, image, line), limits.concurrency)
    try:
        with _bar(progress, total) as bar:
            count = _Count(bar, limits.raises)
            while (due := window.due()) is not None:
                image, future = due
                try:
                    answer: T | ImageError = future.result()
                except _IMAGE_ERRORS as error:
                    answer = count.failed(image, error)
                window.under_way.popleft()
                count.one()
                yield answer
    finally:
        line.hang_up()
        pool.shutdown(cancel_futures=True)


async def _ordered_async(
    work: Callable[[ImageLike], Awaitable[T]],
    images: Iterator[ImageLike],
    total: int | None,
    limits: _Limits,
    progress: bool,
) -> AsyncGenerator[T | ImageError, None]:
    free = asyncio.Semaphore(limits.concurrency)

    async def limited(image: ImageLike) -> T:
        async with free:
            return await work(image)

    window = _Window(images, lambda image: asyncio.create_task(limited(image)), limits.concurrency)
    try:
        with _bar(progress, total) as bar:
            count = _Count(bar, limits.raises)
            while (due := window.due()) is not None:
                image, task = due
                try:
                    answer: T | ImageError = await task
                except _IMAGE_ERRORS as error:
                    answer = count.failed(image, error)
                window.under_way.popleft()
                count.one()
                yield answer
    finally:
        left = [task for _, task in window.under_way]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class _Count:
    """Keeps the bar, and says of an error which image it belongs to."""

    def __init__(self, bar: _Bar | None, raises: bool) -> None:
        self._bar = bar
        self._raises = raises
        self._answers = 0
        self._errors = 0

    def failed(self, image: ImageLike, error: ImageError) -> ImageError:
        """Raise the error, or count and return it."""
        if self._raises:
            name = f" ({os.fspath(image)})" if isinstance(image, str | os.PathLike) else ""
            error.add_note(f"image {self._answers} of the batch{name}")
            raise error
        self._errors += 1
        if self._bar is not None:
            self._bar.set_postfix(failed=self._errors)
        return error

    def one(self) -> None:
        """Count an answer."""
        self._answers += 1
        if self._bar is not None:
            self._bar.update()


def _bar(progress: bool, total: int | None) -> AbstractContextManager[Any]:
    if not progress:
        return nullcontext()
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="image")
