"""What can be asked of layout inversions: made, looked at, listed, watched, cancelled, deleted."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from google.protobuf import empty_pb2

from whybox_proto.errors import ContractError, shorten, unknown_name
from whybox_proto.inversions import check_inversion
from whybox_proto.states import STATES
from whybox_proto.v1 import explainer_pb2, types_pb2
from whybox_service import paging
from whybox_service.asking import Asking
from whybox_service.calls import Call
from whybox_service.jobs.artifacts import place_of
from whybox_service.jobs.database import (
    ConflictError,
    DataFolder,
    JobsError,
    engine_for,
    is_file,
    url_of,
)
from whybox_service.metrics import Metrics
from whybox_service.settings import Settings

if TYPE_CHECKING:
    from whybox_service.jobs.artifacts import Artifacts
    from whybox_service.jobs.replicas import Name
    from whybox_service.jobs.runner import Runner
    from whybox_service.jobs.steps import Steps
    from whybox_service.jobs.store import New, Record, Store
    from whybox_service.jobs.tending import Tending

log = logging.getLogger(__name__)

# The table is looked at so often for each watcher; another replica may run the job.
WATCH_SECONDS = 0.5
_NAME = re.compile(r"inversions/([0-9a-f]{32})")
_THREADS, THREAD_NAME, DBOS_THREAD_NAME = 6, "jobs", "dbos-executor"
_COUNT_SECONDS = 5.0
_MEND_SECONDS = 15.0
_FORGET_SECONDS = 300.0
# A step of about a second ends by itself; one that does not is given up.
_ABANDON_SECONDS = 2.0
_RETRY_SECONDS = 5.0
_LOOK_SECONDS = 0.1

T = TypeVar("T")
SendEvent = Callable[[explainer_pb2.InversionEvent, bool], Awaitable[None]]
"""Sends an event; the flag says whether it is the last one."""


class Inversions:
    """The jobs, as far as the settings say that there are any.

    Raises:
        JobsError: where the settings cannot be used.
    """

    def __init__(self, asking: Asking, metrics: Metrics, settings: Settings) -> None:
        self._asking = asking
        self._metrics = metrics
        self._settings = settings
        metrics.inversions_queue_limit(settings.jobs_queued)
        self._url: str | None = None
        self._folder: DataFolder | None = None
        if settings.data is not None or settings.jobs_database is not None:
            self._url = url_of(settings)
            place_of(settings)
            if settings.data is not None and is_file(settings):
                self._folder = DataFolder(settings.data)
                self._folder.take()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=THREAD_NAME)
        self._starting: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()
        self._ending = threading.Event()
        self._begun = False
        self._conflict = asyncio.Event()
        self._conflict_told: ConflictError | None = None
        self._trouble = ""
        self._place = ""
        # The table, as soon as it can be read; and once jobs are run, which may have to be waited for.
        self._table: Store | None = None
        self._store: Store | None = None
        self._runner: Runner | None = None
        self._steps: Steps | None = None
        self._name: Name | None = None
        # Held while jobs begin to be run under the name, and while they cease to be.
        self._switching = threading.Lock()

    async def begin(self) -> None:
        """Take up what there is to do, in the background; a new folder waits for its first job."""
        if self._url is None:
            return
        if self._folder is None or self._folder.has_jobs:
            self._begun = True
            self._start()

    async def conflict(self) -> None:
        """Wait until what was begun at the start meets another service where this one is meant to be.

        Raises:
            ConflictError: then.
        """
        await self._conflict.wait()
        assert self._conflict_told is not None
        raise self._conflict_told

    async def stop(self) -> None:
        """Let steps that run end, and end the watching; what is not done goes on at the next start."""
        self._stopping.set()
        self._ending.set()
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._runner is not None:
            if (steps := self._steps) is not None:
                steps.stop()
                if not await self._in_thread(self._runner.wait, self._settings.shutdown_seconds):
                    steps.abandon()
                    await self._in_thread(self._runner.wait, _ABANDON_SECONDS)
            await self._in_thread(self._runner.stop)
            self._runner = None
        if self._name is not None:
            await self._in_thread(self._name.release)
        self._threads.shutdown(wait=False)
        if self._folder is not None:
            self._folder.release()

    async def create(
        self, request: explainer_pb2.CreateInversionRequest, call: Call
    ) -> explainer_pb2.Inversion:
        """Queue an inversion; one with the same idempotency key is the same one."""
        store = await self._ready(call)
        from whybox_service.jobs.store import New  # by now it is there

        model = await self._asking.description(request.model, "", call)
        check_inversion(request, model)
        _check_key(request.idempotency_key)
        start = await self._work(call, lambda: _start_of(request, model))
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        kept = explainer_pb2.CreateInversionRequest()
        kept.CopyFrom(request)
        kept.ClearField("image")
        new = New(_new_id(), kept, digest, model.version, call.key, has_start=bool(start))
        record = await self._work(call, lambda: self._create(store, new, start))
        return record.message(brief=False)

    async def get(self, request: explainer_pb2.GetInversionRequest, call: Call) -> explainer_pb2.Inversion:
        """Tell how an inversion is."""
        return (await self._record(request.name, call)).message(brief=False)

    async def page(
        self, request: explainer_pb2.ListInversionsRequest, call: Call
    ) -> explainer_pb2.ListInversionsResponse:
        """List inversions, the newest first; without what is long of each."""
        size = paging.size_of(request.page_size)
        if request.state and request.state not in STATES:
            raise unknown_name("invalid_argument", "state", request.state, STATES, field="state")
        after = _read_position(request.page_token)
        store = await self._readable(call)

        def made() -> explainer_pb2.ListInversionsResponse:
            found = store.page(request.state, size + 1, after)
            token = ""
            if len(found) > size:
                last = found[size - 1]
                token = paging.token(f"{last.created}:{last.id}")
            told = [record.message(brief=True) for record in found[:size]]
            return explainer_pb2.ListInversionsResponse(inversions=told, next_page_token=token)

        return await self._work(call, made)

    async def cancel(
        self, request: explainer_pb2.CancelInversionRequest, call: Call
    ) -> explainer_pb2.Inversion:
        """End an inversion as it is; its last picture stays."""
        record = await self._record(request.name, call)
        await self._ready(call)

        def cancel() -> Record | None:
            store, artifacts, runner, _ = self._parts
            if not store.end(record.id, "cancelled"):
                return None
            self._metrics.inversion_ended(record.model, "cancelled")
            runner.cancel(record.id)
            ended = store.get(record.id)
            if ended is not None:
                artifacts.settle(ended.id, ended.step)
            return ended

        if not record.has_ended and (ended := await self._work(call, cancel)) is not None:
            log.info("%s was cancelled", record.name)
            return ended.message(brief=False)
        record = await self._record(request.name, call)
        raise ContractError(
            "inversion_ended",
            f"{record.name} has ended and cannot be cancelled",
            field="name",
            expected="an inversion that is queued or running",
            got=record.state,
        )

    async def delete(self, request: explainer_pb2.DeleteInversionRequest, call: Call) -> empty_pb2.Empty:
        """Forget an inversion and its pictures; one that has not ended is cancelled by that."""
        record = await self._record(request.name, call)
        await self._ready(call)

        def delete() -> bool:
            store, artifacts, runner, _ = self._parts
            was_there = store.delete([record.id]) > 0
            if not record.has_ended:
                runner.cancel(record.id)
            runner.forget([record.id])
            artifacts.remove(record.id)
            return was_there

        if not await self._work(call, delete):
            raise _unknown(request.name)
        if not record.has_ended:
            self._metrics.inversion_ended(record.model, "cancelled")
        return empty_pb2.Empty()

    async def picture(self, name: str, call: Call) -> bytes:
        """Return the latest picture of an inversion, PNG.

        Raises:
            ContractError: `not_found` while there is none.
        """
        picture = await self._picture(await self._record(name, call), call)
        if not picture:
            raise ContractError("not_found", f"{name} has no picture yet")
        return picture

    async def watch(self, request: explainer_pb2.WatchInversionRequest, call: Call, send: SendEvent) -> None:
        """Tell of an inversion as it changes, until it has ended.

        Who goes on after an event is told at once, in one event, how it is now, also where nothing has
        changed since: a connection on which nothing comes is taken for dead on the way. After the last event
        nothing is told.
        """
        seen = _read_event_id(request.last_event_id)
        record = await self._record(request.name, call)
        if seen > record.revision:
            raise ContractError(
                "invalid_argument",
                f"{record.name} has had no such event",
                field="last_event_id",
                expected=f"at most {record.revision}",
                got=str(seen),
            )
        begun = False
        while True:
            if record.revision > seen or not (begun or record.has_ended):
                begun, seen = True, record.revision
                event = explainer_pb2.InversionEvent(
                    id=str(seen),
                    inversion=record.message(brief=not record.has_ended),
                    preview=await self._picture(record, call),
                )
                await send(event, record.has_ended)
            if record.has_ended:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), WATCH_SECONDS)
            if self._stopping.is_set():
                raise ContractError(
                    "backend_unavailable",
                    "the service stops; go on after the last event",
                    retry_after=_RETRY_SECONDS,
                )
            record = await self._record(request.name, call)

    def _start(self) -> asyncio.Task[None]:
        if self._starting is None or (self._starting.done() and self._starting.exception() is not None):
            self._starting = asyncio.create_task(self._started())
        return self._starting

    async def _started(self) -> None:
        """Start DBOS, which imports much and may wait for its database, and what is done beside the jobs.

        Also again, after another process had this one's name: what is done beside goes on all the while.
        """
        while True:
            try:
                await self._in_thread(self._assemble, asyncio.get_running_loop())
                break
            except JobsError as error:
                if isinstance(error, ConflictError) and self._begun:
                    self._conflict_told = error
                    self._conflict.set()
                else:
                    log.exception("there will be no inversions")
                raise
            except Exception as error:
                self._trouble = shorten(error, 500)
                log.warning("jobs cannot start yet: %s", self._trouble)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _RETRY_SECONDS)
                if self._stopping.is_set():
                    return
        if self._store is None or self._tasks:  # the end came first, or all this is being done
            return
        tending = self._tending
        for work, seconds in (
            (self._count, _COUNT_SECONDS),
            (tending.mend, _MEND_SECONDS),
            (self._orphans.adopt, _MEND_SECONDS),
            (tending.forget, _FORGET_SECONDS),
        ):
            self._tasks.append(asyncio.create_task(self._regularly(work, seconds)))

    def _assemble(self, loop: asyncio.AbstractEventLoop) -> None:
        """Open the table, take the name, and run jobs under it."""
        started = time.monotonic()
        store = self._table or self._open()
        while self._take_name(loop):
            with self._switching:
                if self._name is None or self._name.held:
                    self._run(store, loop)
                    break
        else:
            return
        log.info(
            "jobs are run, as %s, after %.2f s", self._settings.jobs_executor, time.monotonic() - started
        )

    def _open(self) -> Store:
        """Open what can be read before jobs are run."""
        from whybox_service.jobs.artifacts import Artifacts
        from whybox_service.jobs.orphans import Orphans
        from whybox_service.jobs.replicas import identity
        from whybox_service.jobs.runner import Runner
        from whybox_service.jobs.store import Store
        from whybox_service.jobs.tending import Tending

        assert self._url is not None
        settings = self._settings
        artifacts = Artifacts.from_settings(settings)
        engine = engine_for(self._url)
        try:
            Store.prepare(engine)
            if settings.jobs_artifacts is not None:  # else in a folder that is this process's alone
                self._place = artifacts.claim(identity(engine))
        except BaseException:
            engine.dispose()
            raise
        runner = Runner(settings, self._url, engine)
        store = Store(engine, runner.enqueue)
        self._engine, self._artifacts, self._runner, self._table = engine, artifacts, runner, store
        self._tending = Tending(store, artifacts, runner, self._metrics, settings)
        # Who has a file for itself is alone: whoever else has jobs in it will not come back.
        patience = 0.0 if is_file(settings) else settings.jobs_adopt_seconds or None
        self._orphans = Orphans(runner, settings.jobs_executor, patience, self._living, self._borrowed)
        return store

    def _take_name(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Have the replica's name, where it needs one; False where the end came first."""
        from whybox_service.jobs.replicas import Name

        if is_file(self._settings) or (self._name is not None and self._name.held):
            return True
        name = Name(self._engine, self._settings.jobs_executor, self._place, partial(self._name_lost, loop))
        # Who had it before waits for as long as it takes: all but the running of jobs goes on meanwhile.
        if not name.take(self._ending, self._name_is_waited_for, patient=self._name is not None):
            return False
        self._name = name
        return True

    def _run(self, store: Store, loop: asyncio.AbstractEventLoop) -> None:
        from whybox_service.jobs.steps import Steps

        assert self._runner is not None
        steps = Steps(store, self._artifacts, self._asking, self._metrics, self._settings, loop)
        try:
            self._runner.start(steps)
        except BaseException:
            self._runner.rest()
            raise
        self._steps, self._store = steps, store

    def _name_is_waited_for(self) -> None:
        self._trouble = "the replica's name is held by another process, or by one that died a moment ago"

    def _name_lost(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run no job any more till the name is free: another process has it, and all its jobs."""
        log.error(
            "another process runs jobs as %s, since nothing was heard of this one for a while: it runs none "
            "any more until the name is free",
            self._settings.jobs_executor,
        )
        with self._switching:
            if self._runner is None or (steps := self._steps) is None:
                return  # they are just about to be run, and are not without the name
            self._steps = None
            steps.stop()
            steps.abandon()
            self._runner.wait(_ABANDON_SECONDS)
            self._runner.rest()
        if not self._ending.is_set():
            loop.call_soon_threadsafe(self._start_again)

    def _start_again(self) -> None:
        if not self._stopping.is_set():
            self._starting = asyncio.create_task(self._started())

    def _living(self) -> set[str]:
        """Return the names of the replicas that live."""
        from whybox_service.jobs.replicas import living

        return set() if is_file(self._settings) else living(self._engine)

    def _borrowed(self, executor: str) -> contextlib.AbstractContextManager[bool]:
        """Take the name of a replica that is gone, for a moment."""
        from whybox_service.jobs.replicas import Name

        if is_file(self._settings):
            return contextlib.nullcontext(True)
        return Name(self._engine, executor, self._place, lambda: None).borrowed()

    def _count(self) -> None:
        store, *_ = self._parts
        self._metrics.inversions(store.counts())

    async def _regularly(self, work: Callable[[], None], seconds: float) -> None:
        while True:
            try:
                await self._in_thread(work)
            except Exception:
                log.exception("jobs could not be tended")
            await asyncio.sleep(seconds)

    @property
    def _parts(self) -> tuple[Store, Artifacts, Runner, Tending]:
        assert self._store is not None
        assert self._runner is not None
        return self._store, self._artifacts, self._runner, self._tending

    async def _readable(self, call: Call) -> Store:
        """Return the table once it can be read; the first question may wait for that."""
        return await self._there(call, lambda: self._table)

    async def _ready(self, call: Call) -> Store:
        """Return the table once jobs are run; the first question may wait for that."""
        return await self._there(call, lambda: self._store)

    async def _there(self, call: Call, table: Callable[[], Store | None]) -> Store:
        if self._url is None:
            raise ContractError(
                "not_implemented",
                "this service runs no inversions",
                expected="WHYBOX_DATA or WHYBOX_JOBS_DATABASE in the service's settings",
            )
        if table() is None:
            if self._stopping.is_set():
                raise _unavailable("the service stops")
            await self._wait_for_start(call, table)
        if (store := table()) is None:
            raise _unavailable("jobs cannot be run now" if self._trouble else "the service stops")
        return store

    async def _wait_for_start(self, call: Call, table: Callable[[], Store | None]) -> None:
        """Wait until the table is there, unless jobs could not be run at the last try."""
        starting = self._start()
        async with call.deadline.limit():
            while not starting.done() and not self._trouble and table() is None:
                await asyncio.wait({starting}, timeout=_LOOK_SECONDS)
        if table() is None and starting.done() and (error := starting.exception()) is not None:
            raise ContractError("internal", f"jobs cannot be run: {error}") from error

    async def _record(self, name: str, call: Call) -> Record:
        match = _NAME.fullmatch(name)
        if not name:
            raise ContractError(
                "invalid_argument", "no inversion is named", field="name", expected="inversions/ID"
            )
        store = await self._readable(call)
        if match is None:
            raise _unknown(name)
        record = await self._work(call, lambda: store.get(match[1]))
        if record is None:
            raise _unknown(name)
        return record

    async def _picture(self, record: Record, call: Call) -> bytes:
        """Return the latest picture; a step that was followed by others meanwhile is looked for again."""
        while True:
            try:
                return await self._work(call, partial(self._artifacts.picture, record.id, record.step))
            except FileNotFoundError:
                newer = await self._record(record.name, call)
                if newer.revision == record.revision:
                    return b""
                record = newer

    def _create(self, store: Store, new: New, start: bytes) -> Record:
        from whybox_service.jobs.store import KeyTakenError

        key = new.request.idempotency_key
        if key and (there := store.by_key(new.caller, key)) is not None:
            return _same(there, new.digest)
        if start:
            self._artifacts.keep_start(new.id, start)
        try:
            return store.create(new, self._settings.jobs_queued)
        except BaseException as error:
            # Its answer may have been lost, and the job be there all the same.
            if start and store.get(new.id) is None:
                self._artifacts.remove(new.id)
            if isinstance(error, KeyTakenError) and (there := store.by_key(new.caller, key)) is not None:
                return _same(there, new.digest)
            raise

    async def _work(self, call: Call, work: Callable[[], T]) -> T:
        """Do something with the table or the artifacts, in a thread and within the request's deadline."""
        from sqlalchemy.exc import InterfaceError, OperationalError

        async with call.deadline.limit():
            try:
                return await self._in_thread(work)
            except FileNotFoundError:
                raise
            except OSError as error:
                log.warning("artifacts cannot be used: %s", error)
                raise ContractError(
                    "storage_failed", f"artifacts cannot be used: {error.strerror or error}"
                ) from error
            except (OperationalError, InterfaceError) as error:
                log.warning("the database of jobs cannot be used: %s", error)
                if "disk is full" in str(error):
                    raise ContractError("storage_failed", "the database of jobs is full") from error
                raise _unavailable("the database of jobs cannot be reached") from error

    async def _in_thread(self, work: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)


def _start_of(request: explainer_pb2.CreateInversionRequest, model: types_pb2.Model) -> bytes:
    """Return the picture that a job starts from as it is kept; empty where there is none."""
    if not request.image:
        return b""
    from whybox_service.jobs.starting import bounded

    return bounded(request.image, request.layout, model)


def _new_id() -> str:
    """Make an id: the time in milliseconds, then chance."""
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def _same(record: Record, digest: bytes) -> Record:
    if record.digest != digest:
        raise ContractError(
            "idempotency_conflict",
            f"the key belongs to {record.name}, which was asked for otherwise",
            field="idempotency_key",
            expected="the same request, or another key",
        )
    return record


def _check_key(key: str) -> None:
    if "\0" in key:
        raise ContractError(
            "invalid_argument", "the key has a NUL", field="idempotency_key", expected="characters that print"
        )


def _read_position(token: str) -> tuple[int, str] | None:
    """Read the page token of a list of jobs."""
    text = paging.read_token(token)
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,18}):([0-9a-f]{32})", text, re.ASCII)
    if match is None:
        raise paging.bad_token(token)
    return int(match[1]), match[2]


def _read_event_id(given: str) -> int:
    if not given:
        return 0
    if re.fullmatch(r"[0-9]{1,9}", given) is None:
        raise ContractError(
            "invalid_argument",
            "not the id of an event",
            field="last_event_id",
            expected="the id of an event of this inversion, or nothing",
            got=shorten(given),
        )
    return int(given)


def _unknown(name: str) -> ContractError:
    return ContractError(
        "unknown_inversion",
        f"there is no inversion {shorten(name)!r}",
        field="name",
        expected="the name of an inversion that has not been deleted",
        got=shorten(name),
    )


def _unavailable(message: str) -> ContractError:
    return ContractError("backend_unavailable", message, retry_after=_RETRY_SECONDS)
