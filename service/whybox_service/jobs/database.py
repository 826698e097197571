"""The database of jobs: SQLite in the data folder, or Postgres by URL."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from whybox_service.settings import Settings

FILE = "jobs.sqlite"
LOCK = "lock"
# A database that drops packets instead of refusing them is given up, like one that refuses.
_CONNECT = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
_POOL_SIZE = 5
_SQLITE_BUSY_MS = 30_000
_SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://")


class JobsError(ValueError):
    """Jobs cannot be run with these settings; the message says what to change."""


class ConflictError(JobsError):
    """Another service is where this one is meant to be: neither may go on as if it were alone."""


def url_of(settings: Settings) -> str:
    """Return the URL of the database, as DBOS takes it.

    Raises:
        JobsError: where it is none that jobs can use.
    """
    if settings.jobs_database is None:
        if settings.data is None:
            raise JobsError("there are no jobs: set WHYBOX_DATA, or WHYBOX_JOBS_DATABASE")
        return f"sqlite:///{settings.data.resolve() / FILE}"
    url = settings.jobs_database.get_secret_value()
    for scheme in _SCHEMES:
        if url.startswith(scheme):
            return "postgresql://" + url.removeprefix(scheme)
    raise JobsError("WHYBOX_JOBS_DATABASE is no URL of Postgres: postgresql://USER:PASSWORD@HOST/DATABASE")


def is_file(settings: Settings) -> bool:
    """Whether the database is a file, which one process uses."""
    return settings.jobs_database is None


def engine_for(url: str) -> Engine:
    """Return an engine for the table of jobs and for what DBOS does in its transactions."""
    import sqlalchemy as sa

    if not url.startswith("sqlite"):
        return sa.create_engine(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_SIZE,
            pool_pre_ping=True,
            connect_args=_CONNECT,
        )
    engine = sa.create_engine(url, pool_size=_POOL_SIZE, max_overflow=_POOL_SIZE)

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        # A transaction that writes takes its lock when it begins, as DBOS's own do.
        connection.isolation_level = "IMMEDIATE"
        connection.execute(f"PRAGMA busy_timeout={_SQLITE_BUSY_MS}")
        # Readers do not wait for writers; it stays with the file, so DBOS's connections have it too.
        connection.execute("PRAGMA journal_mode=WAL")

    return engine


@contextmanager
def unsynced(engine: Engine) -> Iterator[Connection]:
    """Begin a transaction whose commit does not wait for the disk.

    It is there for all who ask, and survives this process. Should the machine lose its power it may be lost,
    but never where a later one with a plain commit, such as DBOS makes, is not: both stand in one log, one
    after the other.
    """
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
            yield connection
        return
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        # Not by way of SQLAlchemy, which would begin a transaction with it.
        driver.execute("PRAGMA synchronous=NORMAL")
        try:
            with connection.begin():
                yield connection
        finally:
            driver.execute("PRAGMA synchronous=FULL")


class DataFolder:
    """A folder that one process uses at a time, as long as it lives."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock: int | None = None

    def take(self) -> None:
        """Make the folder, and take it.

        Raises:
            JobsError: where another process has it, or it cannot be written.
        """
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise JobsError(f"{self._path} cannot be used for jobs: {error.strerror or error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise JobsError(
                f"{self._path} is in use by another whybox; choose another folder with WHYBOX_DATA, or let "
                "several replicas share a Postgres with WHYBOX_JOBS_DATABASE"
            ) from error
        self._lock = descriptor

    @property
    def has_jobs(self) -> bool:
        """Whether jobs have been in it."""
        return (self._path / FILE).exists()

    def release(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
