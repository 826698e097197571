"""Which models there are, which of them can answer, and what each describes itself as.

A watcher looks at TorchServe every few seconds, so requests need not. A description comes from a worker and
is kept until the model's workers change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from whybox_proto.errors import ContractError, shorten, unknown_name
from whybox_proto.v1 import types_pb2, worker_pb2
from whybox_service.backend import Backend, Served
from whybox_service.calls import Deadline, new_request_id
from whybox_service.settings import Settings

log = logging.getLogger(__name__)

# Seconds between two looks while something is not ready.
IMPATIENT_POLL_SECONDS = 0.5
# A look this fresh is not repeated for a request that would like a newer one.
FRESH_SECONDS = 0.25
# Seconds between two looks for a request whose worker was lost.
RECOVERY_LOOK_SECONDS = 0.25
# How long the watcher waits for TorchServe.
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class Readiness:
    """Whether every model can answer, and if not, why."""

    ready: bool
    reasons: dict[str, str]


class StalledError(ContractError):
    """The model's workers hang, so nothing more is sent to them until one is heard."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__("backend_unavailable", message, retry_after=retry_after)


class Catalogue:
    """The models behind the gateway."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self._backend = backend
        self._poll_seconds = settings.poll_seconds
        # By name and version; the default version of a name stands under the version "".
        self._served: dict[tuple[str, str], Served] = {}
        self._names: list[str] = []
        self._descriptions: dict[tuple[str, str], tuple[Served, types_pb2.Model]] = {}
        self._problem = "TorchServe has not been asked yet"
        self._looked_at = float("-inf")
        self._looking = asyncio.Lock()
        self._suspicion = asyncio.Event()
        self._describing: dict[tuple[str, str], asyncio.Lock] = {}

    async def current_names(self, deadline: Deadline) -> list[str]:
        """Return the names of the models as TorchServe has them now, or, should it be gone, had them."""
        await self.look(deadline)
        if self._problem and not self._names:
            raise ContractError("backend_unavailable", self._problem)
        return self._names

    @property
    def names(self) -> list[str]:
        """The names of the models, sorted."""
        return self._names

    def workers(self) -> dict[str, Sequence[tuple[str, int, str]]]:
        """Return the id, process id and status of the workers of each model, as at the last look."""
        return {name: served.workers for (name, version), served in self._served.items() if not version}

    def default_version(self, model: str) -> str | None:
        """Return the version that a model answers with unless another is named; None where there is none."""
        served = self._served.get((model, ""))
        return None if served is None else served.version

    def knows(self, model: str) -> bool:
        """Whether a model of this name is served."""
        return (model, "") in self._served

    async def watch(self, notify: Callable[[Readiness], Awaitable[None]]) -> None:
        """Look at TorchServe for ever, fetch missing descriptions, and tell the readiness after each look."""
        while True:
            try:
                await self.look(Deadline.after(2 * PATIENCE_SECONDS))
                await asyncio.gather(*(self._learn(name) for name in self._names))
                await asyncio.gather(*(self._probe(served) for served in list(self._served.values())))
                readiness = self.readiness()
                await notify(readiness)
            except Exception:
                log.exception("looking at TorchServe failed")
                readiness = Readiness(False, {})
            self._suspicion.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(
                    self._suspicion.wait(), self._poll_seconds if readiness.ready else IMPATIENT_POLL_SECONDS
                )

    async def look(self, deadline: Deadline) -> None:
        """Ask TorchServe for the state of its models, unless that was done a moment ago."""
        async with deadline.limit(), self._looking:
            if time.monotonic() - self._looked_at < FRESH_SECONDS:
                return
            # Its own patience: a client in a hurry must not make the models look unready to everyone.
            patience = Deadline.after(PATIENCE_SECONDS)
            try:
                names = sorted(await self._backend.names(patience))
                others = [key for key in self._served if key[1] and key[0] in names]
                found = await asyncio.gather(
                    *(self._find(name, "", patience) for name in names),
                    *(self._find(name, version, patience) for name, version in others),
                )
            except ContractError as error:
                self._problem = error.message
                self._served = {
                    key: Served(served.name, served.version, (), 0) for key, served in self._served.items()
                }
            else:
                self._problem = ""
                self._names = names
                for key, served in found:
                    before = self._served.get(key)
                    if served and before and _identity(before) != _identity(served):
                        self._backend.renewed(served.name, served.version)
                self._served = {key: served for key, served in found if served is not None}
            self._looked_at = time.monotonic()

    async def state(self, model: str, version: str, deadline: Deadline) -> Served:
        """Return the state of a model, or say that there is none of this name and version."""
        if (model, "") not in self._served:
            await self.look(deadline)
        if (model, "") not in self._served:
            if self._problem:
                raise ContractError("backend_unavailable", self._problem)
            raise unknown_name("unknown_model", "model", model, self._names, field="model")
        default = self._served[model, ""]
        if version in ("", default.version):
            return default
        if (model, version) not in self._served:
            _, served = await self._find(model, version, deadline)
            if served is None:
                versions = [s.version for s in await self._backend.served(model, "all", deadline)]
                raise unknown_name(
                    "unknown_model", f"version of {model}", version, versions, field="model_version"
                )
            self._served[model, version] = served
        return self._served[model, version]

    def slots(self, model: str, version: str) -> int:
        """Return how many requests the ready workers of a model take at one time, shared batches included."""
        served = self._seen(model, version)
        return 0 if served is None else served.batch_size * max(1, served.ready_workers)

    def ready_workers(self, model: str, version: str) -> int:
        """Return how many workers of a model could work at one time at the last look; at least 1."""
        served = self._seen(model, version)
        return 1 if served is None else max(1, served.ready_workers)

    def batch_delay(self, model: str, version: str) -> float:
        """Return the seconds within which two requests may land in one batch; 0 where batches hold one."""
        served = self._seen(model, version)
        return 0.0 if served is None or served.batch_size == 1 else served.batch_delay

    def _seen(self, model: str, version: str) -> Served | None:
        """Return what the last look saw of a version of a model, or of its default one."""
        return self._served.get((model, version)) or self._served.get((model, ""))

    async def recovered(self, model: types_pb2.Model, deadline: Deadline, seconds: float) -> bool:
        """Wait for a model whose worker was lost; return whether it can answer again within that time."""
        until = min(deadline.at, time.monotonic() + seconds)
        while True:
            self._suspicion.set()
            await asyncio.sleep(min(RECOVERY_LOOK_SECONDS, max(0.0, until - time.monotonic())))
            if time.monotonic() >= until:
                return False
            await self.look(deadline)
            served = self._seen(model.name, model.version)
            if not self._problem and served is not None and served.ready:
                return True

    async def description(self, model: str, version: str, deadline: Deadline) -> types_pb2.Model:
        """Return what a model says of itself, its state left out; shared, so do not change it.

        Raises:
            ContractError: `unknown_model`, or `backend_unavailable` while none of its workers is ready.
        """
        served = await self.state(model, version, deadline)
        if not served.ready:
            await self.look(deadline)
            served = await self.state(model, version, deadline)
            if not served.ready:
                raise ContractError("backend_unavailable", f"{model}: {self._unready(served)}")
        if self._silence(served):
            raise StalledError(f"{model}: {self._silence(served)}", self._poll_seconds)
        if (known := self._known(served)) is not None:
            return known
        key = (served.name, served.version)
        async with deadline.limit(), self._describing.setdefault(key, asyncio.Lock()):
            if (known := self._known(served)) is not None:
                return known
            request = worker_pb2.WorkerRequest(
                describe=worker_pb2.DescribeRequest(), request_id=new_request_id(), deadline=deadline.epoch()
            )
            reply = await self._backend.ask(served.name, served.version, request, deadline)
            described = reply.model
            described.name, described.version = key
            self._descriptions[key] = (served, described)
            return described

    async def entry(self, model: str, version: str, deadline: Deadline) -> types_pb2.Model:
        """Return a model's description together with its state as it is now, as far as both can be had."""
        await self.look(deadline)
        served = await self.state(model, version, deadline)
        entry = types_pb2.Model(name=served.name, version=served.version)
        try:
            entry.CopyFrom(await self.description(model, version, deadline))
            entry.ready = True
        except ContractError as error:
            if error.type == "deadline_exceeded":
                raise
            log.info("%s cannot be described: %s", model, error.message)
        entry.state.ready = entry.ready
        entry.state.queue_remaining = max(served.queue_remaining, 0)
        for worker_id, _, status in served.workers:
            entry.state.workers.add(id=worker_id, status=status)
        return entry

    def judge(self, error: ContractError, model: types_pb2.Model) -> ContractError:
        """Look at an error that TorchServe gave for a model; have the watcher see to it where it may last.

        TorchServe says the same when a queue is full and when there is no worker to queue for.
        """
        if not error.row.retryable or error.type == "deadline_exceeded":
            return error
        self._suspicion.set()
        served = self._seen(model.name, model.version)
        if error.type == "overloaded" and (served is None or not served.ready):
            return ContractError("backend_unavailable", f"{model.name}: {self._unready(served)}")
        return error

    def readiness(self) -> Readiness:
        """Say whether every model can answer, from the last look."""
        if self._problem:
            return Readiness(False, {"torchserve": self._problem})
        if not self._names:
            return Readiness(False, {"torchserve": "no model is loaded"})
        reasons = {}
        for name in self._names:
            served = self._served.get((name, ""))
            if served is None or not served.ready:
                reasons[name] = self._unready(served)
            elif silence := self._silence(served):
                reasons[name] = silence
            elif (served.name, served.version) not in self._descriptions:
                reasons[name] = "the model has not described itself yet"
        return Readiness(not reasons, reasons)

    async def _learn(self, name: str) -> None:
        try:
            served = self._served.get((name, ""))
            if served is not None and served.ready and self._known(served) is None:
                await self.description(name, "", Deadline.after(PATIENCE_SECONDS))
        except ContractError as error:
            log.warning("the model %s cannot be described: %s", name, error.message)

    async def _probe(self, served: Served) -> None:
        if served.ready and self._known(served) is not None:
            await self._backend.probe(served.name, served.version)

    async def _find(
        self, name: str, version: str, deadline: Deadline
    ) -> tuple[tuple[str, str], Served | None]:
        try:
            found = await self._backend.served(name, version, deadline)
        except ContractError as error:
            if error.type != "unknown_model":
                raise
            found = []
        return (name, version), found[0] if found else None

    def _known(self, served: Served) -> types_pb2.Model | None:
        """Return the kept description, unless the model's workers are others by now."""
        kept = self._descriptions.get((served.name, served.version))
        if kept is None or _identity(kept[0]) != _identity(served):
            return None
        return kept[1]

    def _silence(self, served: Served) -> str:
        """Say that a model's workers hang; empty where they do not."""
        seconds = self._backend.silent_for(served.name, served.version)
        return f"no worker has answered for {seconds:.0f} s" if seconds else ""

    def _unready(self, served: Served | None) -> str:
        if self._problem:
            return self._problem
        if served is None or not served.workers:
            return "it has no worker"
        statuses = ", ".join(shorten(status) for _, _, status in served.workers)
        return f"no worker is ready ({statuses})"


def _identity(served: Served) -> list[tuple[str, int]]:
    return [(worker_id, pid) for worker_id, pid, _ in served.workers]
