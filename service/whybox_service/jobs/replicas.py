"""Who shares a database of jobs: the database has an id, and each replica a name that one process holds.

A replica's jobs are found again by its name (`WHYBOX_JOBS_EXECUTOR`). Two processes of one name would each
take the other's jobs for their own, so a name is held by one process, which says every few seconds that it
lives. One that is killed leaves its name behind: it is free when nothing was heard for a while, and at once
where it can be seen that the process is gone. All times are the database's.

A lock of the database's would do the same, but for poolers of connections, behind which nobody knows whose
connection holds it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import sqlalchemy as sa

from whybox_service import processes
from whybox_service.heartbeat import Repeating
from whybox_service.jobs.database import ConflictError

log = logging.getLogger(__name__)

# A process says so often that it lives, and is taken for dead after so long a silence.
BEAT_SECONDS = 5.0
LEASE_SECONDS = 20.0
_LOOK_SECONDS = 0.5

_METADATA = sa.MetaData()
_IDENTITY = sa.Table(
    "whybox_identity",
    _METADATA,
    sa.Column("one", sa.Integer, sa.CheckConstraint("one = 1"), primary_key=True),
    sa.Column("id", sa.String(32), nullable=False),
)
_REPLICAS = sa.Table(
    "whybox_replicas",
    _METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    # The process that has it, the place of its artifacts, and when it was last heard.
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("place", sa.Text, nullable=False),
    sa.Column("beat", sa.Integer, nullable=False),
    sa.Column("heard", sa.DateTime(timezone=True), nullable=False),
)
_C = _REPLICAS.c


def identity(engine: sa.Engine) -> str:
    """Return the random id of a database of jobs, which is made when it is first asked for."""
    _METADATA.create_all(engine)
    with contextlib.suppress(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.insert(_IDENTITY).values(one=1, id=secrets.token_hex(16)))
    with engine.connect() as connection:
        return str(connection.execute(sa.select(_IDENTITY.c.id)).scalar_one())


class _Row(NamedTuple):
    """What stands under a name.

    Attributes:
        name: of the replica.
        holder: the process that has it.
        place: the id of the place of its artifacts.
        beat: how often it has said that it lives.
        silent: seconds since then.
    """

    name: str
    holder: str
    place: str
    beat: int
    silent: float

    @property
    def is_free(self) -> bool:
        """Whether who had the name has died, as far as can be told."""
        return self.silent >= LEASE_SECONDS or _is_gone(self.holder)


def living(engine: sa.Engine) -> set[str]:
    """Return the names that are held by processes which live, as far as can be told."""
    return {row.name for row in _rows(engine).values() if not row.is_free}


class Name:
    """A replica's name, as long as this process holds it.

    Args:
        engine: of the database.
        name: of the replica.
        place: id of the place of its artifacts, which is that of all replicas.
        lost: called, in a thread, when another process has the name: this one was silent for too long.
    """

    def __init__(self, engine: sa.Engine, name: str, place: str, lost: Callable[[], None]) -> None:
        self._engine = engine
        self._name = name
        self._place = place
        self._lost = lost
        pid = os.getpid()
        self._holder = f"{_place()} {pid} {processes.begin_of(pid)} {secrets.token_hex(8)}"
        self._beating: Repeating | None = None

    @property
    def held(self) -> bool:
        """Whether this process has it, as far as it knows."""
        return self._beating is not None

    def take(
        self, stopping: threading.Event, waits: Callable[[], None] = lambda: None, *, patient: bool = False
    ) -> bool:
        """Take the name, once whoever had it has been silent for long enough; False where the end came first.

        Args:
            stopping: the end.
            waits: called where it is not to be had at once.
            patient: wait also for another process that has it and lives.

        Raises:
            ConflictError: where another process has it and lives, unless that is waited for; or a replica of
                another name keeps its artifacts in another place.
        """
        _METADATA.create_all(self._engine)
        first, told = self._look(), False
        while True:
            row = self._look()
            if row and first and (row.holder, row.beat) != (first.holder, first.beat) and not patient:
                raise self._taken(row.holder)
            if row is None or row.is_free:
                if not self._write(row):
                    continue  # another was faster
                self._check_places()
                self._beating = Repeating(self._beat)
                return True
            if first is None and not patient:
                raise self._taken(row.holder)
            if not told:
                told = True
                log.warning("the name %s is held by %s: waiting for a sign of life", self._name, row.holder)
                waits()
            if stopping.wait(_LOOK_SECONDS):
                return False

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[bool]:
        """Have the name while the block lasts, if it can be had at once; give whether that is so.

        It is for who does something in place of the dead one that had it, and for no longer than a moment:
        no sign of life is given.
        """
        row = self._look()
        if not (row is None or row.is_free) or not self._write(row):
            yield False
            return
        try:
            yield True
        finally:
            self._forget()

    def release(self) -> None:
        """Let another process have the name at once."""
        if self._beating is None:
            return
        self._beating.stop()
        self._beating = None
        self._forget()

    def _forget(self) -> None:
        mine = (_C.name == self._name, _C.holder == self._holder)
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.delete(_REPLICAS).where(*mine))
        except sa.exc.SQLAlchemyError as error:  # it is free after a while all the same
            log.warning("the name %s stays taken for %g s: %s", self._name, LEASE_SECONDS, error)

    def _look(self) -> _Row | None:
        return _rows(self._engine).get(self._name)

    def _check_places(self) -> None:
        """Give the name back where a replica that lives has its artifacts in another place."""
        for row in _rows(self._engine).values():
            if row.place != self._place and not row.is_free:
                self._forget()
                raise ConflictError(
                    f"the replica {row.name!r} keeps states and pictures elsewhere; WHYBOX_JOBS_ARTIFACTS "
                    "must name one place for all replicas on a database"
                )

    def _write(self, before: _Row | None) -> bool:
        """Write that this process has the name, unless something has changed since."""
        values = {"holder": self._holder, "place": self._place, "beat": 0, "heard": sa.func.now()}
        try:
            with self._engine.begin() as connection:
                if before is None:
                    connection.execute(sa.insert(_REPLICAS).values(name=self._name, **values))
                    return True
                same = (_C.name == self._name, _C.holder == before.holder, _C.beat == before.beat)
                return connection.execute(sa.update(_REPLICAS).where(*same).values(**values)).rowcount > 0
        except sa.exc.IntegrityError:
            return False

    def _beat(self) -> float:
        """Say that this process lives; what the database does not take is said again later."""
        mine = (_C.name == self._name, _C.holder == self._holder)
        try:
            with self._engine.begin() as connection:
                kept = connection.execute(
                    sa.update(_REPLICAS).where(*mine).values(beat=_C.beat + 1, heard=sa.func.now())
                ).rowcount
        except sa.exc.SQLAlchemyError as error:
            log.debug("%s cannot say that it lives: %s", self._name, error)
            return BEAT_SECONDS
        if not kept and self._beating is not None:
            self._beating.stop()
            self._beating = None
            self._lost()
        return BEAT_SECONDS

    def _taken(self, holder: str) -> ConflictError:
        host = holder.split(" ")[0]
        return ConflictError(
            f"another whybox, on {host}, runs jobs as {self._name!r} on this database; give each replica a "
            "name of its own with WHYBOX_JOBS_EXECUTOR"
        )


def _rows(engine: sa.Engine) -> dict[str, _Row]:
    """Return what stands under each name."""
    query = sa.select(_C.name, _C.holder, _C.place, _C.beat, _C.heard, sa.func.now().label("now"))
    with engine.connect() as connection:
        found = connection.execute(query).all()
    return {
        row.name: _Row(row.name, row.holder, row.place, row.beat, (row.now - row.heard).total_seconds())
        for row in found
    }


def _place() -> str:
    """Name what a process id belongs to: host, boot and namespace, without spaces."""
    return f"{socket.gethostname()} {processes.space()}"


def _is_gone(holder: str) -> bool:
    """Whether it can be seen from here that the process that holds a name has ended."""
    place, pid, begin, _ = holder.rsplit(" ", 3)
    if place != _place() or not processes.space():
        return False
    try:
        return processes.begin_of(int(pid)) != int(begin)
    except OSError as error:  # nothing is known of it, so its silence has to tell
        log.warning("the process %s cannot be looked at: %s", pid, error)
        return False
