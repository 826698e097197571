"""The table of jobs: what clients are told.

Every change of a row raises its `revision`, the id of the event that tells it. Changes are guarded by
the state before, so that a job which has ended stays as it ended, whoever comes late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from whybox_proto.errors import ContractError
from whybox_proto.states import ACTIVE, ENDED, State
from whybox_proto.v1 import explainer_pb2
from whybox_service.jobs.database import unsynced

QUEUE_FULL_RETRY_SECONDS = 30.0

_METADATA = sa.MetaData()
# Times are microseconds since the epoch; messages are serialized protobuf.
_JOBS = sa.Table(
    "whybox_inversions",
    _METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    # When the job was made; its steps ask for this one. None: it was not noted then.
    sa.Column("model_version", sa.Text),
    # With the name of its API key and a colon before it, so that callers do not meet each other's.
    sa.Column("idempotency_key", sa.Text, unique=True),
    # SHA-256 of the request, its picture included.
    sa.Column("digest", sa.LargeBinary, nullable=False),
    # CreateInversionRequest without its picture; and without what is long, for lists.
    sa.Column("request", sa.LargeBinary, nullable=False),
    sa.Column("brief", sa.LargeBinary, nullable=False),
    sa.Column("has_start", sa.Boolean, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("updated", sa.BigInteger, nullable=False),
    sa.Column("started", sa.BigInteger),
    sa.Column("ended", sa.BigInteger),
    sa.Column("revision", sa.Integer, nullable=False),
    # The last finished step; 0: none.
    sa.Column("step", sa.Integer, nullable=False),
    # InversionProgress, LayoutMatch, InversionResult, Error.
    sa.Column("progress", sa.LargeBinary),
    sa.Column("match", sa.LargeBinary),
    sa.Column("result", sa.LargeBinary),
    sa.Column("error", sa.LargeBinary),
    sa.Index("whybox_inversions_created", "created", "id"),
    sa.Index("whybox_inversions_state", "state", "created", "id"),
)
_C = _JOBS.c
_BRIEF = (
    *(_C.id, _C.state, _C.model, _C.priority, _C.brief, _C.created, _C.updated, _C.started, _C.ended),
    *(_C.revision, _C.step, _C.progress, _C.match, _C.error),
)
_WHOLE = (*_BRIEF, _C.request, _C.result, _C.digest, _C.has_start, _C.model_version)


class Record(NamedTuple):
    """A row, its columns in the order of `_WHOLE`.

    Attributes:
        id: the part of the name after the slash.
        created, updated, started, ended: microseconds since the epoch; None where that has not been.
        revision: counts the changes.
        step: the last finished one; 0: none.
        brief: the request without what is long.
        request, digest: None in a list.
        has_start: whether there is a picture to start from; None in a list.
        model_version: the model's version when the job was made; None in a list, and where it was not noted.
    """

    id: str
    state: State
    model: str
    priority: int
    brief: bytes
    created: int
    updated: int
    started: int | None
    ended: int | None
    revision: int
    step: int
    progress: bytes | None
    match: bytes | None
    error: bytes | None
    request: bytes | None = None
    result: bytes | None = None
    digest: bytes | None = None
    has_start: bool | None = None
    model_version: str | None = None

    @property
    def name(self) -> str:
        """As clients know it."""
        return name_of(self.id)

    @property
    def pinned(self) -> str:
        """The model's version with which the job goes on; empty: its default one."""
        return self.model_version or ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing changes any more."""
        return self.state in ENDED

    def message(self, *, brief: bool) -> explainer_pb2.Inversion:
        """Return what a client is told.

        Args:
            brief: without the layout's objects, and of the result the match alone.
        """
        told = explainer_pb2.Inversion(name=self.name, state=self.state)
        told.request.ParseFromString(self.brief if brief or self.request is None else self.request)
        if self.progress:
            told.progress.ParseFromString(self.progress)
        if self.error:
            told.error.ParseFromString(self.error)
        if self.result and not brief:
            told.result.ParseFromString(self.result)
        elif self.match:
            told.result.match.ParseFromString(self.match)
        told.create_time.FromMicroseconds(self.created)
        told.update_time.FromMicroseconds(self.updated)
        return told


@dataclass(frozen=True)
class New:
    """A job that shall be.

    Attributes:
        id: the part of the name after the slash.
        request: without its picture.
        digest: SHA-256 of the request, its picture included.
        model_version: that the job shall be done with.
        caller: name of the API key that it was asked with; its idempotency key is known to that one alone.
        has_start: whether there is a picture to start from, kept beside the table.
    """

    id: str
    request: explainer_pb2.CreateInversionRequest
    digest: bytes
    model_version: str
    caller: str = ""
    has_start: bool = False

    def brief(self) -> explainer_pb2.CreateInversionRequest:
        """The request without what may be long."""
        short = explainer_pb2.CreateInversionRequest()
        short.CopyFrom(self.request)
        del short.layout.objects[:]
        return short


class KeyTakenError(Exception):
    """The idempotency key belongs to a job that is there."""


class Store:
    """The table.

    Args:
        engine: of the database.
        enqueue: has DBOS run a job, in the transaction of a connection; given its id and priority.
    """

    def __init__(self, engine: sa.Engine, enqueue: Callable[[sa.Connection, str, int], None]) -> None:
        self._engine = engine
        self._enqueue = enqueue

    @staticmethod
    def prepare(engine: sa.Engine) -> None:
        """Make the table where it is not there, and what an older one lacks: columns that may be empty."""
        _METADATA.create_all(engine)
        with engine.begin() as connection:
            there = {column["name"] for column in sa.inspect(connection).get_columns(_JOBS.name)}
            for column in _JOBS.columns:
                if column.name not in there:
                    kind = column.type.compile(engine.dialect)
                    connection.execute(sa.text(f"ALTER TABLE {_JOBS.name} ADD COLUMN {column.name} {kind}"))

    def create(self, new: New, max_queued: int) -> Record:
        """Add a job and hand it to DBOS, both or neither.

        Raises:
            KeyTakenError: where its idempotency key belongs to another job.
            ContractError: `overloaded`, where as many are queued as may be.
        """
        now, asked = microseconds(), new.request
        try:
            with self._engine.begin() as connection:
                query = sa.select(sa.func.count()).select_from(_JOBS).where(_C.state == "queued")
                queued = connection.execute(query).scalar_one()
                if queued >= max_queued:
                    raise ContractError(
                        "overloaded",
                        "as many inversions are queued as the service takes",
                        expected=f"at most {max_queued}",
                        got=str(queued),
                        retry_after=QUEUE_FULL_RETRY_SECONDS,
                    )
                connection.execute(
                    sa.insert(_JOBS).values(
                        id=new.id,
                        state="queued",
                        model=asked.model,
                        priority=asked.priority,
                        model_version=new.model_version,
                        idempotency_key=_scoped(new.caller, asked.idempotency_key),
                        digest=new.digest,
                        request=asked.SerializeToString(),
                        brief=new.brief().SerializeToString(),
                        has_start=new.has_start,
                        created=now,
                        updated=now,
                        revision=1,
                        step=0,
                    )
                )
                self._enqueue(connection, new.id, asked.priority)
                return _one(connection, new.id) or _lost(new.id)
        except sa.exc.IntegrityError as error:
            if asked.idempotency_key and self.by_key(new.caller, asked.idempotency_key) is not None:
                raise KeyTakenError from error
            raise

    def by_key(self, caller: str, key: str) -> Record | None:
        """Return the job that an idempotency key of a caller belongs to.

        Jobs of before the keys were each caller's own have theirs without a caller, as they have no version:
        they are found by all who have the key, as they were then, unless a caller has used it since.
        """
        own, older = _C.idempotency_key == _scoped(caller, key), _C.idempotency_key == key
        query = sa.select(*_WHOLE).where(sa.or_(own, sa.and_(older, _C.model_version.is_(None))))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(_C.created.desc())).all()
        return _record(rows[0]) if rows else None

    def get(self, job: str) -> Record | None:
        """Return a job; None where there is none."""
        with self._engine.connect() as connection:
            return _one(connection, job)

    def page(self, state: str, size: int, after: tuple[int, str] | None) -> list[Record]:
        """Return jobs, the newest first.

        Args:
            state: of all of them; empty for any.
            size: at most so many.
            after: `created` and `id` of the last one of the page before.
        """
        query = sa.select(*_BRIEF).order_by(_C.created.desc(), _C.id.desc()).limit(size)
        if state:
            query = query.where(_C.state == state)
        if after is not None:
            query = query.where(sa.tuple_(_C.created, _C.id) < sa.tuple_(*map(sa.literal, after)))
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(query)]

    def begin(self, job: str) -> tuple[Record | None, bool]:
        """Say that a job runs, unless that is known.

        Returns:
            The job, None where it has ended or is no more; and whether it was queued till now.
        """
        now = microseconds()
        with self._engine.begin() as connection:
            begun = connection.execute(
                sa.update(_JOBS)
                .where(_C.id == job, _C.state == "queued")
                .values(state="running", started=now, updated=now, revision=_C.revision + 1)
            )
            record = _one(connection, job)
        return record if record is not None and record.state == "running" else None, begun.rowcount > 0

    def advanced(self, job: str, step: int, progress: bytes) -> bool:
        """Say how far a job has come; False where it has ended or is no more.

        The step is recorded by DBOS next, which waits for the disk.
        """
        with unsynced(self._engine) as connection:
            connection.execute(
                sa.update(_JOBS)
                .where(_C.id == job, _C.state == "running", _C.step < step)
                .values(step=step, progress=progress, updated=microseconds(), revision=_C.revision + 1)
            )
            query = sa.select(_C.state).where(_C.id == job)
            return connection.execute(query).scalar_one_or_none() == "running"

    def runs(self, job: str) -> bool:
        """Whether a job has begun and not ended."""
        with self._engine.connect() as connection:
            query = sa.select(_C.state).where(_C.id == job)
            return connection.execute(query).scalar_one_or_none() == "running"

    def end(
        self,
        job: str,
        state: State,
        *,
        result: explainer_pb2.InversionResult | None = None,
        error: explainer_pb2.Error | None = None,
    ) -> bool:
        """End a job; False where it has ended before, or is no more."""
        now = microseconds()
        values: dict[str, Any] = {"state": state, "ended": now, "updated": now, "revision": _C.revision + 1}
        if result is not None:
            values |= {"result": result.SerializeToString(), "match": result.match.SerializeToString()}
        if error is not None:
            values["error"] = error.SerializeToString()
        with self._engine.begin() as connection:
            done = connection.execute(
                sa.update(_JOBS).where(_C.id == job, _C.state.in_(ACTIVE)).values(**values)
            )
            return done.rowcount > 0

    def delete(self, jobs: Sequence[str]) -> int:
        """Forget jobs; return how many there were."""
        with self._engine.begin() as connection:
            return connection.execute(sa.delete(_JOBS).where(_C.id.in_(jobs))).rowcount

    def counts(self) -> dict[str, int]:
        """Return how many jobs are queued and running."""
        query = sa.select(_C.state, sa.func.count()).where(_C.state.in_(ACTIVE)).group_by(_C.state)
        with self._engine.connect() as connection:
            found = {str(state): int(count) for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in ACTIVE}

    def active(self) -> list[str]:
        """Return the jobs that have not ended."""
        with self._engine.connect() as connection:
            return list(connection.execute(sa.select(_C.id).where(_C.state.in_(ACTIVE))).scalars())

    def states(self, jobs: Sequence[str]) -> dict[str, State]:
        """Return the states of those jobs that are there."""
        query = sa.select(_C.id, _C.state).where(_C.id.in_(jobs))
        with self._engine.connect() as connection:
            return {row.id: row.state for row in connection.execute(query)}

    def expired(self, before: int | None, keep: int, limit: int) -> list[str]:
        """Return jobs that ended before a moment, or that newer ones have pushed out.

        Args:
            before: microseconds since the epoch; None: none is too old.
            keep: how many stay, the newest; 0: all.
            limit: return at most so many.
        """
        query = sa.select(_C.id).where(_C.state.in_(ENDED))
        found: list[str] = []
        with self._engine.connect() as connection:
            if before is not None:
                found += connection.execute(query.where(_C.ended < before).limit(limit)).scalars()
            if keep:
                newest = query.order_by(_C.created.desc(), _C.id.desc())
                found += connection.execute(newest.offset(keep).limit(limit)).scalars()
        return list(dict.fromkeys(found))[:limit]

    def ended_since(self, moment: int) -> dict[str, int]:
        """Return the jobs that have ended since a moment, each with its last step."""
        query = sa.select(_C.id, _C.step).where(_C.state.in_(ENDED), _C.ended >= moment)
        with self._engine.connect() as connection:
            return {row.id: row.step for row in connection.execute(query)}

    def ended_before(self, moment: int, jobs: Sequence[str]) -> list[str]:
        """Return those of the jobs that ended before a moment, or are no more."""
        query = sa.select(_C.id).where(_C.id.in_(jobs), sa.or_(_C.ended.is_(None), _C.ended >= moment))
        with self._engine.connect() as connection:
            stay = set(connection.execute(query).scalars())
        return [job for job in jobs if job not in stay]


def name_of(job: str) -> str:
    """Return the name of a job, as clients know it."""
    return f"inversions/{job}"


def microseconds() -> int:
    """Return the time, in microseconds since the epoch."""
    return time.time_ns() // 1000


def _scoped(caller: str, key: str) -> str | None:
    """Return what a caller's idempotency key is kept as; no name of an API key has a colon."""
    return f"{caller}:{key}" if key else None


def _one(connection: sa.Connection, job: str) -> Record | None:
    row = connection.execute(sa.select(*_WHOLE).where(_C.id == job)).one_or_none()
    return None if row is None else _record(row)


def _record(row: Any) -> Record:
    """Return a row of `_WHOLE`, or of `_BRIEF`, which is its beginning."""
    return Record(*row)


def _lost(job: str) -> Record:
    raise LookupError(f"the job {job} was not written")
