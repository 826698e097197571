"""States and pictures of jobs: files that are whole or not there, in a folder or behind an fsspec URL.

    ID/000012.step    what the twelfth step ended with: how far it is, its picture, its state
    ID/start          the picture that the client gave to start from
    ID/picture.png    the last picture of a job that has ended
    service/database  the id of the database whose jobs these are
    service/place     the id of the place

A step's file never changes once it is there: who writes it a second time leaves the first one as it is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import struct
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whybox_proto.errors import shorten
from whybox_proto.v1 import worker_pb2
from whybox_service.jobs.database import ConflictError, JobsError

if TYPE_CHECKING:
    from whybox_service.settings import Settings

log = logging.getLogger(__name__)

START, PICTURE, STEP = "start", "picture.png", ".step"
_TEMPORARY = ".tmp"
_FOLDER = "artifacts"
# Beside the jobs' folders: whose they all are, and which place this is.
_SERVICE, _OWNER, _PLACE = "service", "database", "place"
# Magic; bytes of the message without state and picture, of the picture, of the state. They follow so.
_HEADER = struct.Struct("<4sIQQ")
_MAGIC = b"WBI1"
# Whose writes are whole or not there by themselves.
_ATOMIC = frozenset({"abfs", "abfss", "az", "gcs", "gs", "memory", "oss", "s3", "s3a"})


class Files(ABC):
    """Files in one folder for each job. Missing ones raise FileNotFoundError, all else OSError.

    Attributes:
        settle_seconds: after which who wrote a file `once`, at the same time as another, reads whose it is.
    """

    settle_seconds = 0.0

    @abstractmethod
    def write(self, job: str, name: str, parts: Sequence[bytes], *, once: bool) -> None:
        """Write a file, whole or not at all.

        Args:
            job: whose.
            name: of the file.
            parts: its bytes.
            once: leave one that is there as it is.
        """

    @abstractmethod
    def read(self, job: str, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file, or a part of it."""

    @abstractmethod
    def names(self, job: str) -> list[str]:
        """Return the names of a job's files; unfinished ones count."""

    @abstractmethod
    def jobs(self) -> list[str]:
        """Return the jobs that have files."""

    @abstractmethod
    def delete(self, job: str, name: str) -> None:
        """Delete a file, if it is there."""

    @abstractmethod
    def remove(self, job: str) -> None:
        """Delete all of a job's files."""


class Folder(Files):
    """Files of the local machine, or of a volume that it has mounted."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, job: str, name: str, parts: Sequence[bytes], *, once: bool) -> None:
        """Write beside it and put it in its place, so that nobody sees half a file."""
        folder = self._path / job
        folder.mkdir(mode=0o700, exist_ok=True)
        final, temporary = folder / name, folder / f"{uuid.uuid4().hex}{_TEMPORARY}"
        try:
            with temporary.open("xb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
            if once:
                _link(temporary, final)
            else:
                temporary.replace(final)
            _sync(folder)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, job: str, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file, or a part of it."""
        with (self._path / job / name).open("rb") as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def names(self, job: str) -> list[str]:
        """Return the names of a job's files."""
        try:
            return sorted(entry.name for entry in (self._path / job).iterdir())
        except FileNotFoundError:
            return []

    def jobs(self) -> list[str]:
        """Return the jobs that have files."""
        return sorted(entry.name for entry in self._path.iterdir() if entry.is_dir())

    def delete(self, job: str, name: str) -> None:
        """Delete a file, if it is there."""
        (self._path / job / name).unlink(missing_ok=True)

    def remove(self, job: str) -> None:
        """Delete all of a job's files."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._path / job)


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Have what a storage's package raises be an OSError: each has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class Remote(Files):
    """Files behind an fsspec URL, such as ``s3://bucket/whybox``; its package must be installed."""

    settle_seconds = 1.0

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise JobsError(f"WHYBOX_JOBS_ARTIFACTS cannot be used: {error}") from error
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self._atomic = bool(protocols & _ATOMIC)

    @_os_errors()
    def write(self, job: str, name: str, parts: Sequence[bytes], *, once: bool) -> None:
        """Write it; beside it first where the storage would show half a file."""
        final = self._at(job, name)
        if once and self._fs.exists(final):
            return
        if self._atomic:
            if once:
                self._create(final, b"".join(parts))
            else:
                self._fs.pipe_file(final, b"".join(parts))
            return
        self._fs.makedirs(self._at(job), exist_ok=True)
        temporary = self._at(job, f"{uuid.uuid4().hex}{_TEMPORARY}")
        try:
            self._fs.pipe_file(temporary, b"".join(parts))
            self._fs.mv(temporary, final)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.rm_file(temporary)
            raise

    def _create(self, final: str, body: bytes) -> None:
        """Write a file, unless another has been faster: the storage sees to that, where it can."""
        try:
            self._fs.pipe_file(final, body, mode="create")
        except FileExistsError:
            pass
        except (NotImplementedError, TypeError, ValueError):  # a package that does not know of this
            self._fs.pipe_file(final, body)
        except OSError as error:
            if error.errno == errno.ENOSYS:  # a storage that does not
                self._fs.pipe_file(final, body)
            elif not self._fs.exists(final):  # else it was refused as it is there, or the answer was lost
                raise

    @_os_errors()
    def read(self, job: str, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return a file, or a part of it."""
        end = None if length is None else start + length
        body: bytes = self._fs.cat_file(self._at(job, name), start=start, end=end)
        return body

    @_os_errors()
    def names(self, job: str) -> list[str]:
        """Return the names of a job's files."""
        return self._listed(self._at(job), "file")

    @_os_errors()
    def jobs(self) -> list[str]:
        """Return the jobs that have files."""
        return self._listed(self._root, "directory")

    @_os_errors()
    def delete(self, job: str, name: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(job, name))

    @_os_errors()
    def remove(self, job: str) -> None:
        """Delete all of a job's files."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._at(job), recursive=True)

    def _at(self, *parts: str) -> str:
        return "/".join((self._root.rstrip("/"), *parts))

    def _listed(self, path: str, kind: str) -> list[str]:
        try:
            entries: list[dict[str, Any]] = self._fs.ls(path, detail=True)
        except FileNotFoundError:
            return []
        return sorted(
            entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == kind
        )


class Artifacts:
    """What jobs keep."""

    def __init__(self, files: Files) -> None:
        self._files = files

    @classmethod
    def from_settings(cls, settings: Settings) -> Artifacts:
        """Return the artifacts where the settings say that they are.

        Raises:
            JobsError: where they cannot be there.
        """
        where = place_of(settings)
        if "://" in where and not where.startswith("file://"):
            return cls(Remote(where))
        try:
            return cls(Folder(Path(where.removeprefix("file://")).resolve()))
        except OSError as error:
            raise JobsError(f"{where} cannot be used for artifacts: {error.strerror or error}") from error

    def claim(self, database: str) -> str:
        """Note whose artifacts these are: files of jobs that its database does not know are deleted in time.

        Of two databases that are new to a place one gets it, also where the storage cannot tell who was
        first: both then read what was written last.

        Args:
            database: id of the database of jobs.

        Returns:
            An id of the place.

        Raises:
            ConflictError: where they belong to another database.
        """
        new = [self._note(_OWNER, database), self._note(_PLACE, uuid.uuid4().hex)]
        if any(new):
            time.sleep(self._files.settle_seconds)
        owner = self._noted(_OWNER)
        if owner != database:
            raise ConflictError(
                f"what WHYBOX_JOBS_ARTIFACTS names belongs to another database of jobs, {shorten(owner)}; "
                f"name another place, or delete its file {_SERVICE}/{_OWNER} if that database is no more"
            )
        return self._noted(_PLACE)

    def _note(self, name: str, value: str) -> bool:
        """Note something of all the artifacts, unless that was done before; return whether it was not."""
        try:
            self._noted(name)
        except FileNotFoundError:
            self._files.write(_SERVICE, name, [value.encode()], once=True)
            return True
        return False

    def _noted(self, name: str) -> str:
        return self._files.read(_SERVICE, name).decode(errors="replace")

    def keep_start(self, job: str, picture: bytes) -> None:
        """Keep the picture that a job shall start from."""
        self._files.write(job, START, [picture], once=False)

    def start(self, job: str) -> bytes:
        """Return the picture that a job shall start from.

        Raises:
            FileNotFoundError: where it was not kept, or was lost.
        """
        return self._files.read(job, START)

    def keep_step(self, job: str, step: int, advance: worker_pb2.Advance) -> None:
        """Keep what a step ended with, unless that was done before.

        Args:
            job: whose.
            step: which.
            advance: what it ended with; loses its state and picture, which may be large.
        """
        state, picture = advance.state, advance.picture
        advance.ClearField("state")
        advance.ClearField("picture")
        told = advance.SerializeToString()
        header = _HEADER.pack(_MAGIC, len(told), len(picture), len(state))
        self._files.write(job, _step(step), [header, told, picture, state], once=True)

    def told(self, job: str, step: int) -> worker_pb2.Advance:
        """Return what a step ended with, but for its state and its picture.

        Raises:
            FileNotFoundError: where it has not ended, or was deleted since.
        """
        name = _step(step)
        told, _, _ = self._sizes(job, name)
        return worker_pb2.Advance.FromString(self._files.read(job, name, _HEADER.size, told))

    def state(self, job: str, step: int) -> bytes:
        """Return the state that a step ended with.

        Raises:
            FileNotFoundError: as `step`.
        """
        name = _step(step)
        told, picture, state = self._sizes(job, name)
        return self._files.read(job, name, _HEADER.size + told + picture, state)

    def picture(self, job: str, step: int) -> bytes:
        """Return the latest picture of a job whose last step is this; empty where there is none yet.

        Raises:
            FileNotFoundError: where a later step has come meanwhile.
        """
        try:
            return self._files.read(job, PICTURE)
        except FileNotFoundError:
            pass
        try:
            return self._step_picture(job, step) if step else b""
        except FileNotFoundError:  # it was settled between the two looks, or a later step has come
            return self._files.read(job, PICTURE)

    def drop_step(self, job: str, step: int) -> None:
        """Delete what a step ended with: no later one needs it any more."""
        if step > 0:
            self._files.delete(job, _step(step))

    def settle(self, job: str, step: int) -> None:
        """Leave of a job that has ended its last picture alone; doing it again does no harm.

        Args:
            job: which.
            step: its last finished one; 0: none.
        """
        names, kept = self._files.names(job), {PICTURE}
        if PICTURE not in names and step:
            try:
                if picture := self._step_picture(job, step):
                    self._files.write(job, PICTURE, [picture], once=True)
            except FileNotFoundError:
                pass
            except OSError as error:  # the disk is full: then the picture stays where it is
                log.warning("the last picture of %s cannot be written: %s", job, error)
                kept.add(_step(step))
        for name in names:
            if name not in kept:
                self._files.delete(job, name)

    def unsettled(self, job: str) -> bool:
        """Whether there is more of a job than its last picture."""
        return any(name != PICTURE for name in self._files.names(job))

    def jobs(self) -> list[str]:
        """Return the jobs of which there is something."""
        return [name for name in self._files.jobs() if name != _SERVICE]

    def remove(self, job: str) -> None:
        """Delete all that there is of a job."""
        self._files.remove(job)

    def _step_picture(self, job: str, step: int) -> bytes:
        name = _step(step)
        told, picture, _ = self._sizes(job, name)
        return self._files.read(job, name, _HEADER.size + told, picture)

    def _sizes(self, job: str, name: str) -> tuple[int, int, int]:
        header = self._files.read(job, name, 0, _HEADER.size)
        try:
            magic, told, picture, state = _HEADER.unpack(header)
        except struct.error:
            magic = b""
        if magic != _MAGIC:
            raise OSError(f"{job}/{name} is no state of ours")
        return told, picture, state


def place_of(settings: Settings) -> str:
    """Return the folder, or the fsspec URL, where the settings have artifacts.

    Raises:
        JobsError: where they name none for replicas that share a database.
    """
    if settings.jobs_artifacts is not None:
        return settings.jobs_artifacts
    if settings.data is None or settings.jobs_database is not None:
        raise JobsError(
            "WHYBOX_JOBS_DATABASE needs WHYBOX_JOBS_ARTIFACTS: a folder or URL for states and pictures that "
            "all replicas on that database share"
        )
    return str(settings.data / _FOLDER)


def _step(step: int) -> str:
    return f"{step:06d}{STEP}"


def _link(temporary: Path, final: Path) -> None:
    """Give a file its name, unless another has it."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return
    except OSError:  # a file system without links
        if not final.exists():
            temporary.replace(final)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
