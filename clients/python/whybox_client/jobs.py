"""Layout inversions as objects that ask the service: how far they are, their pictures, and to end them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from whybox_client import flows
from whybox_client.errors import (
    InternalError,
    InvalidAnswerError,
    InversionCancelledError,
    InversionFailedError,
    WhyboxError,
)
from whybox_client.images import ImageLike
from whybox_client.inversions import Inversion, InversionEvent, InversionProgress, InversionResult
from whybox_client.layouts import LayoutLike
from whybox_client.models import ParameterValue
from whybox_client.transports.lines import Line
from whybox_client.wire import Flow, Streaming

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")

_SUCCEEDED, _CANCELLED = "succeeded", "cancelled"


class _Job:
    """What both kinds of jobs know without asking."""

    def __init__(self, inversion: Inversion) -> None:
        self._inversion = inversion

    @property
    def inversion(self) -> Inversion:
        """All that the service told when it was last asked."""
        return self._inversion

    @property
    def name(self) -> str:
        """Its name, ``inversions/ID``."""
        return self._inversion.name

    @property
    def id(self) -> str:
        """The last part of its name."""
        return self._inversion.id

    @property
    def state(self) -> str:
        """``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``, when it was last asked."""
        return self._inversion.state

    @property
    def ended(self) -> bool:
        """Whether it had ended when it was last asked."""
        return self._inversion.ended

    @property
    def progress(self) -> InversionProgress:
        """How far it was when it was last asked."""
        return self._inversion.progress

    @property
    def result(self) -> InversionResult | None:
        """What came of it; None until it is known that it has succeeded, and for one of a list."""
        return self._inversion.result

    @property
    def error(self) -> WhyboxError | None:
        """Why it failed; None where it has not."""
        return self._inversion.error

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {self.state}>"

    def _see(self, event: InversionEvent) -> InversionEvent:
        told = event.inversion
        # While it runs its events leave the layout's objects out.
        self._inversion = told if told.layout.objects else replace(told, layout=self._inversion.layout)
        return event

    def _outcome(self) -> InversionResult:
        """Return the result, or raise what the end was instead."""
        if self.result is not None:
            return self.result
        if self.state == _SUCCEEDED:
            raise InvalidAnswerError(f"{self.name} has succeeded, but there is no result")
        if self.state == _CANCELLED:
            raise InversionCancelledError(f"{self.name} was cancelled")
        error = self.error or InternalError("nobody says why")
        raise InversionFailedError(
            f"{self.name} failed: {error.message}",
            type=error.type,
            field=error.field,
            expected=error.expected,
            got=error.got,
            request_id=error.request_id,
        )


class InversionJob(_Job):
    """A layout inversion that runs in the service, whatever becomes of this object.

    What it knows is of when it was last asked: `refresh`, `wait`, `watch` and `cancel` ask.
    """

    def __init__(self, client: Jobs, inversion: Inversion) -> None:
        super().__init__(inversion)
        self._client = client

    def refresh(self) -> InversionJob:
        """Ask how it is; return the same job.

        Raises:
            UnknownInversionError: if it was deleted.
            WhyboxError: what else went wrong, as `whybox_client.errors` draws it.
        """
        self._inversion = self._client._run(flows.inversion(self.name), Line())
        return self

    def watch(self, *, timeout: float | None = None) -> Generator[InversionEvent, None, None]:
        """Iterate over what happens to it, with its latest pictures; first how it is, and last its end.

        A connection that breaks is made anew, and goes on behind the last event; it is given up where the
        service cannot be reached for as long as the client's own timeout. Leaving the loop ends the watching,
        not the job.

        Args:
            timeout: seconds for all of it; None: as long as the job takes.

        Raises:
            DeadlineExceededError: if it has not ended within `timeout`; it goes on.
            WhyboxError: what else went wrong, as `whybox_client.errors` draws it.
        """
        with closing(self._client._stream(flows.watch_inversion(self.name, timeout))) as events:
            last = ""
            for event in events:
                if event.id != last:  # a new connection begins with how it is, be that known or not
                    last = event.id
                    yield self._see(event)

    def wait(self, *, progress: bool = False, timeout: float | None = None) -> InversionResult:
        """Wait for its end, and return the result. Ctrl-C ends the waiting, not the job.

        Args:
            progress: whether a bar on stderr, or in the notebook, shows how far it is.
            timeout: seconds; None: as long as it takes.

        Raises:
            InversionFailedError: if it fails.
            InversionCancelledError: if it is cancelled.
            DeadlineExceededError: if it has not ended within `timeout`; it goes on.
            WhyboxError: what else went wrong, as `whybox_client.errors` draws it.
        """
        if not self.ended:
            with _bar(progress) as show, closing(self.watch(timeout=timeout)) as events:
                for event in events:
                    show(event)
        if self.state == _SUCCEEDED and (self.result is None or self.result.source is None):
            self.refresh()
        return self._outcome()

    def cancel(self) -> InversionJob:
        """Cancel it, within a step; it keeps its last picture. Return the same job.

        Raises:
            InversionEndedError: if it has ended otherwise.
            UnknownInversionError: if it was deleted.
            WhyboxError: what else went wrong, as `whybox_client.errors` draws it.
        """
        self._inversion = self._client._run(flows.cancel_inversion(self.name), Line())
        return self

    def delete(self) -> None:
        """Delete it and its pictures, for good; one that runs ends.

        Raises:
            UnknownInversionError: if it was deleted before.
            WhyboxError: what else went wrong, as `whybox_client.errors` draws it.
        """
        self._client._run(flows.delete_inversion(self.name), Line())

    def image(self) -> Image.Image:
        """Ask for the latest picture, (H, W), RGB.

        Raises:
            NotFoundError: while there is none.
            WhyboxError: what else went wrong, as `whybox_client.errors` draws it.
        """
        return self._client._run(flows.inversion_picture(self.name), Line()).pixels


class AsyncInversionJob(_Job):
    """The same for asyncio: every method is awaited, and `watch` iterated with ``async for``."""

    def __init__(self, client: AsyncJobs, inversion: Inversion) -> None:
        super().__init__(inversion)
        self._client = client

    async def refresh(self) -> AsyncInversionJob:
        """Ask how it is; as `InversionJob.refresh`."""
        self._inversion = await self._client._run(flows.inversion(self.name))
        return self

    async def watch(self, *, timeout: float | None = None) -> AsyncGenerator[InversionEvent, None]:
        """Iterate over what happens to it; as `InversionJob.watch`.

        Who leaves the loop early closes the iterator, with `contextlib.aclosing`.
        """
        async with aclosing(self._client._stream(flows.watch_inversion(self.name, timeout))) as events:
            last = ""
            async for event in events:
                if event.id != last:  # a new connection begins with how it is, be that known or not
                    last = event.id
                    yield self._see(event)

    async def wait(self, *, progress: bool = False, timeout: float | None = None) -> InversionResult:
        """Wait for its end, and return the result; as `InversionJob.wait`."""
        if not self.ended:
            with _bar(progress) as show:
                async with aclosing(self.watch(timeout=timeout)) as events:
                    async for event in events:
                        show(event)
        if self.state == _SUCCEEDED and (self.result is None or self.result.source is None):
            await self.refresh()
        return self._outcome()

    async def cancel(self) -> AsyncInversionJob:
        """Cancel it; as `InversionJob.cancel`."""
        self._inversion = await self._client._run(flows.cancel_inversion(self.name))
        return self

    async def delete(self) -> None:
        """Delete it and its pictures; as `InversionJob.delete`."""
        await self._client._run(flows.delete_inversion(self.name))

    async def image(self) -> Image.Image:
        """Ask for the latest picture; as `InversionJob.image`."""
        return (await self._client._run(flows.inversion_picture(self.name))).pixels


class Jobs(ABC):
    """The methods of `Client` on layout inversions."""

    @abstractmethod
    def _run(self, flow: Flow[T], line: Line) -> T: ...

    @abstractmethod
    def _stream(self, streaming: Streaming[T]) -> Generator[T, None, None]: ...

    def invert(
        self,
        layout: LayoutLike,
        *,
        model: str,
        preset: str | None = None,
        params: Mapping[str, ParameterValue] | None = None,
        seed: int = 0,
        image: ImageLike | None = None,
        priority: int = 0,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        request_id: str | None = None,
    ) -> InversionJob:
        """Start a layout inversion: the service looks for a picture that a model recognises as a layout.

        It returns at once; the job runs in the service, and survives its restarts.

        Args:
            layout: which objects stand where; a `Layout`, or the contract's JSON of one.
            model: name of the model; one whose description has `inversion`.
            preset: where the parameters come from; None: the model's first preset.
            params: what differs from the preset, by name; see the model's `inversion`.
            seed: of the random numbers: the same seed makes the same picture.
            image: what to start from, of the layout's size; None: as the parameters say.
            priority: 0 to 9; among the queued jobs the highest runs first.
            idempotency_key: who asks with the same key again gets the first job, so that asking again is
                safe. None: one of this call's own; empty: none, and the call is not asked again by itself.
            timeout: seconds to wait for the job to be accepted, all attempts together; None: the client's
                own.
            retries: how often to ask again where that is safe and can help; None: as the client says.
            request_id: the id under which the service logs the request; None: a new one.

        Raises:
            TypeError, ValueError: for an argument that cannot be sent.
            OSError: if the file of the image cannot be read.
            ConflictError: if the key belongs to another request.
            OverloadedError: if as many jobs wait as may.
            WhyboxError: what else went wrong, as `whybox_client.errors` draws it.
        """
        flow = flows.invert(
            layout,
            model=model,
            preset=preset,
            params=params,
            seed=seed,
            image=image,
            priority=priority,
            idempotency_key=idempotency_key,
            timeout=timeout,
            retries=retries,
            request_id=request_id,
        )
        return InversionJob(self, self._run(flow, Line()))

    def inversion(self, name: str) -> InversionJob:
        """Return the job of a layout inversion.

        Args:
            name: ``inversions/ID``, or the ID alone.

        Raises:
            UnknownInversionError: if there is none.
            WhyboxError: what else went wrong, as `whybox_client.errors` draws it.
        """
        return InversionJob(self, self._run(flows.inversion(name), Line()))

    def inversions(self, state: str | None = None) -> Generator[InversionJob, None, None]:
        """Iterate over the layout inversions there are, newest first; further pages are asked for as needed.

        Those of a list have no result, but a `match` in their `inversion`, and a layout without its objects;
        `InversionJob.refresh` gets all of it.

        Args:
            state: only those ``queued``, ``running``, ``succeeded``, ``failed`` or ``cancelled``; None: all.

        Raises:
            WhyboxError: while iterating: what went wrong, as `whybox_client.errors` draws it.
        """
        token: str | None = ""
        while token is not None:
            page, following = self._run(flows.inversions(state, token), Line())
            for one in page:
                yield InversionJob(self, one)
            token = following or None


class AsyncJobs(ABC):
    """The methods of `AsyncClient` on layout inversions."""

    @abstractmethod
    async def _run(self, flow: Flow[T]) -> T: ...

    @abstractmethod
    def _stream(self, streaming: Streaming[T]) -> AsyncGenerator[T, None]: ...

    async def invert(
        self,
        layout: LayoutLike,
        *,
        model: str,
        preset: str | None = None,
        params: Mapping[str, ParameterValue] | None = None,
        seed: int = 0,
        image: ImageLike | None = None,
        priority: int = 0,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        request_id: str | None = None,
    ) -> AsyncInversionJob:
        """Start a layout inversion; as `Client.invert`."""
        flow = flows.invert(
            layout,
            model=model,
            preset=preset,
            params=params,
            seed=seed,
            image=image,
            priority=priority,
            idempotency_key=idempotency_key,
            timeout=timeout,
            retries=retries,
            request_id=request_id,
        )
        return AsyncInversionJob(self, await self._run(flow))

    async def inversion(self, name: str) -> AsyncInversionJob:
        """Return the job of a layout inversion; as `Client.inversion`."""
        return AsyncInversionJob(self, await self._run(flows.inversion(name)))

    async def inversions(self, state: str | None = None) -> AsyncGenerator[AsyncInversionJob, None]:
        """Iterate over the layout inversions there are; as `Client.inversions`, with ``async for``."""
        token: str | None = ""
        while token is not None:
            page, following = await self._run(flows.inversions(state, token))
            for one in page:
                yield AsyncInversionJob(self, one)
            token = following or None


@contextmanager
def _bar(progress: bool) -> Iterator[Callable[[InversionEvent], None]]:
    """Show events in a bar while the block lasts."""
    if not progress:
        yield lambda _: None
        return
    from tqdm.auto import tqdm

    with tqdm(unit="iteration") as bar:
        yield lambda event: advance(bar, event)


def advance(bar: Any, event: InversionEvent) -> None:
    """Show in a bar of tqdm's how far an inversion is."""
    progress = event.progress
    bar.total = progress.iterations or None
    bar.n = progress.iteration
    facts = [event.state] if event.state != "running" else []
    if progress.iteration:
        facts.append(f"{progress.found} found")
    if "total" in progress.losses:
        facts.append(f"loss {progress.losses['total']:.3g}")
    bar.set_postfix_str(", ".join(facts))
