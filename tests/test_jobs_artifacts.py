"""States and pictures of jobs: whole or not there, once written the same, in a folder and behind a URL."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from whybox_proto.v1 import worker_pb2
from whybox_service.jobs.artifacts import Artifacts, Files, Folder, Remote
from whybox_service.jobs.database import ConflictError, JobsError
from whybox_service.settings import Settings

JOB = "0" * 32


def advance(iteration: int, state: bytes = b"state", picture: bytes = b"picture") -> worker_pb2.Advance:
    made = worker_pb2.Advance(state=state, picture=picture)
    made.progress.iteration = iteration
    return made


@pytest.fixture(params=["folder", "memory", "local"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    """A folder; a storage whose writes are whole by themselves; one whose writes are not."""
    if request.param == "folder":
        yield Folder(tmp_path)
        return
    if request.param == "local":
        yield Remote(f"local://{tmp_path}")
        return
    made = Remote("memory://whybox")
    yield made
    with contextlib.suppress(FileNotFoundError):
        made._fs.rm("/whybox", recursive=True)


@pytest.fixture
def artifacts(files: Files) -> Artifacts:
    return Artifacts(files)


class TestSteps:
    def test_what_is_kept_comes_back(self, artifacts: Artifacts) -> None:
        kept = advance(3, b"s" * 100_000)
        kept.result.match.recall = 0.5
        artifacts.keep_step(JOB, 1, kept)
        assert artifacts.state(JOB, 1) == b"s" * 100_000
        assert artifacts.picture(JOB, 1) == b"picture"
        assert kept.state == kept.picture == b""  # what is large is in memory once
        assert artifacts.told(JOB, 1) == kept
        assert kept.result.match.recall == 0.5
        assert artifacts.jobs() == [JOB]

    def test_a_step_that_runs_twice_stays_as_it_was(self, artifacts: Artifacts) -> None:
        artifacts.keep_step(JOB, 1, advance(3, b"first"))
        artifacts.keep_step(JOB, 1, advance(4, b"second"))
        assert artifacts.state(JOB, 1) == b"first"
        assert artifacts.told(JOB, 1).progress.iteration == 3

    def test_what_is_not_there_says_so(self, artifacts: Artifacts) -> None:
        with pytest.raises(FileNotFoundError):
            artifacts.told(JOB, 1)
        with pytest.raises(FileNotFoundError):
            artifacts.state(JOB, 1)
        assert artifacts.picture(JOB, 0) == b""
        with pytest.raises(FileNotFoundError):
            artifacts.start(JOB)
        artifacts.drop_step(JOB, 1)
        artifacts.drop_step(JOB, -1)
        artifacts.remove(JOB)
        artifacts.settle(JOB, 0)
        assert artifacts.jobs() == []

    def test_empty_state_and_picture(self, artifacts: Artifacts) -> None:
        artifacts.keep_step(JOB, 1, advance(1, b"", b""))
        assert artifacts.state(JOB, 1) == b""
        assert artifacts.picture(JOB, 1) == b""

    def test_something_else_is_no_state(self, files: Files) -> None:
        for body in (b"", b"WBI1", b"other" * 10):
            files.write(JOB, "000001.step", [body], once=False)
            with pytest.raises(OSError, match="no state of ours"):
                Artifacts(files).state(JOB, 1)


class TestEnd:
    def test_the_last_picture_alone_stays(self, artifacts: Artifacts, files: Files) -> None:
        artifacts.keep_start(JOB, b"start")
        for step in (1, 2, 3):
            artifacts.keep_step(JOB, step, advance(step, picture=b"picture %d" % step))
        assert artifacts.start(JOB) == b"start"
        assert artifacts.picture(JOB, 2) == b"picture 2"
        assert artifacts.unsettled(JOB)
        for _ in range(2):
            artifacts.settle(JOB, 2)  # the third was not told
            assert files.names(JOB) == ["picture.png"]
            assert artifacts.picture(JOB, 2) == b"picture 2"
        assert not artifacts.unsettled(JOB)
        artifacts.remove(JOB)
        assert artifacts.jobs() == files.names(JOB) == []

    def test_a_job_without_a_step_has_no_picture(self, artifacts: Artifacts, files: Files) -> None:
        artifacts.keep_start(JOB, b"start")
        artifacts.settle(JOB, 0)
        assert files.names(JOB) == []


class TestFaults:
    def test_a_write_that_fails_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        files = Folder(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                files.write(JOB, "000001.step", [b"body"], once=True)
        assert files.names(JOB) == []

    def test_the_picture_stays_where_it_is_while_the_disk_is_full(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        artifacts = Artifacts(Folder(tmp_path))
        artifacts.keep_step(JOB, 1, advance(1))

        def full(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(Folder, "write", full)
            artifacts.settle(JOB, 1)
        assert artifacts.picture(JOB, 1) == b"picture"
        artifacts.settle(JOB, 1)
        assert artifacts.picture(JOB, 1) == b"picture"
        assert not artifacts.unsettled(JOB)

    def test_a_file_system_without_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any) -> None:
            raise PermissionError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
        artifacts = Artifacts(Folder(tmp_path))
        artifacts.keep_step(JOB, 1, advance(1, b"first"))
        artifacts.keep_step(JOB, 1, advance(1, b"second"))
        assert artifacts.state(JOB, 1) == b"first"


class TestStorages:
    """What stands behind a URL, and its package, have ways of their own."""

    class OddError(Exception):
        """As no OSError is."""

    @pytest.fixture
    def files(self) -> Iterator[Remote]:
        made = Remote("memory://whybox")
        yield made
        with contextlib.suppress(FileNotFoundError):
            made._fs.rm("/whybox", recursive=True)

    def test_their_errors_are_errors_of_storage(self, files: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise self.OddError("no credentials")

        for name in ("exists", "pipe_file", "cat_file", "ls", "rm", "rm_file"):
            monkeypatch.setattr(files._fs, name, fail)
        for act in (
            lambda: files.write(JOB, "start", [b""], once=False),
            lambda: files.write(JOB, "start", [b""], once=True),
            lambda: files.read(JOB, "start"),
            lambda: files.names(JOB),
            files.jobs,
            lambda: files.delete(JOB, "start"),
            lambda: files.remove(JOB),
        ):
            with pytest.raises(OSError, match="OddError: no credentials"):
                act()

    def test_what_is_not_there_is_told_apart(self, files: Remote) -> None:
        with pytest.raises(FileNotFoundError):
            files.read(JOB, "start")

    @pytest.mark.parametrize(
        "error", [TypeError("mode"), NotImplementedError(), OSError(errno.ENOSYS, "not implemented")]
    )
    def test_one_that_cannot_create_writes(
        self, files: Remote, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        self.refuse(files, monkeypatch, error)
        files.write(JOB, "start", [b"body"], once=True)
        assert files.read(JOB, "start") == b"body"

    def test_one_that_says_that_it_is_there_in_other_words(
        self, files: Remote, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files.write(JOB, "start", [b"first"], once=True)
        looks = iter([False, True])
        monkeypatch.setattr(files._fs, "exists", lambda _: next(looks))
        self.refuse(files, monkeypatch, OSError(errno.EINVAL, "precondition failed"))
        files.write(JOB, "start", [b"second"], once=True)
        assert files.read(JOB, "start") == b"first"

    def test_one_that_fails_fails(self, files: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuse(files, monkeypatch, OSError(errno.EIO, "gone"))
        with pytest.raises(OSError, match="gone"):
            files.write(JOB, "start", [b"body"], once=True)
        assert files.names(JOB) == []

    def refuse(self, files: Remote, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        """Have the storage refuse to create, and nothing else."""
        pipe = files._fs.pipe_file

        def piped(path: str, body: bytes, **asked: Any) -> None:
            if asked:
                raise error
            pipe(path, body)

        monkeypatch.setattr(files._fs, "pipe_file", piped)


class TestOwner:
    @pytest.fixture(autouse=True)
    def in_no_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Remote, "settle_seconds", 0.0)

    def test_one_database_has_them(self, artifacts: Artifacts, files: Files) -> None:
        place = artifacts.claim("1" * 32)
        artifacts.keep_start(JOB, b"start")
        assert artifacts.claim("1" * 32) == place != ""
        with pytest.raises(ConflictError, match=f"belongs to another database of jobs, {'1' * 32}"):
            artifacts.claim("2" * 32)
        assert artifacts.jobs() == [JOB]
        assert files.names(JOB) == ["start"]

    @pytest.mark.parametrize("exclusive", [True, False])
    def test_of_two_that_come_at_one_time_one_has_them(
        self, files: Files, monkeypatch: pytest.MonkeyPatch, exclusive: bool
    ) -> None:
        """The second one looks before the first has written, and writes after it."""
        blind, outcomes = False, {}
        read = files.read

        def claim(database: str) -> None:
            try:
                outcomes[database] = Artifacts(files).claim(database) != ""
            except ConflictError:
                outcomes[database] = False

        def blindly(job: str, *asked: Any) -> bytes:
            if blind:
                raise FileNotFoundError(job)
            return read(job, *asked)

        def meanwhile(_seconds: float) -> None:
            nonlocal blind
            first, blind = not blind, not blind
            if first and not outcomes:
                claim("2" * 32)

        monkeypatch.setattr(files, "read", blindly)
        monkeypatch.setattr("whybox_service.jobs.artifacts.time.sleep", meanwhile)
        if isinstance(files, Remote):
            exists, pipe = files._fs.exists, files._fs.pipe_file
            monkeypatch.setattr(files._fs, "exists", lambda path: not blind and exists(path))

            def piped(path: str, body: bytes, mode: str = "overwrite") -> None:
                if exclusive and mode == "create" and exists(path):
                    raise FileExistsError(path)
                pipe(path, body)

            monkeypatch.setattr(files._fs, "pipe_file", piped)
        claim("1" * 32)
        assert sorted(outcomes.values()) == [False, True]
        (owner,) = [database for database, has in outcomes.items() if has]
        assert files.read("service", "database").decode() == owner

    def test_one_that_looked_long_ago_gets_nothing_where_the_storage_sees_to_it(
        self, monkeypatch: pytest.MonkeyPatch, files: Files
    ) -> None:
        if isinstance(files, Remote) and not files._atomic:
            return  # nobody sees to it
        files.write(JOB, "000001.step", [b"first"], once=True)
        if isinstance(files, Remote):
            exists = files._fs.exists
            looks = iter([False])
            monkeypatch.setattr(files._fs, "exists", lambda path: next(looks, exists(path)))
        files.write(JOB, "000001.step", [b"second"], once=True)
        assert files.read(JOB, "000001.step") == b"first"

    def test_they_can_be_taken_over_by_hand(self, artifacts: Artifacts, files: Files) -> None:
        artifacts.claim("1" * 32)
        files.delete("service", "database")
        artifacts.claim("2" * 32)


class TestSettings:
    def test_they_are_in_the_data_folder_by_default(self, tmp_path: Path) -> None:
        Artifacts.from_settings(Settings(data=tmp_path)).keep_start(JOB, b"x")
        assert (tmp_path / "artifacts" / JOB / "start").read_bytes() == b"x"

    def test_a_folder_by_its_url(self, tmp_path: Path) -> None:
        Artifacts.from_settings(Settings(jobs_artifacts=f"file://{tmp_path}/there")).keep_start(JOB, b"x")
        assert (tmp_path / "there" / JOB / "start").read_bytes() == b"x"

    def test_what_cannot_be_used_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        database = SecretStr("postgresql://whybox@host/whybox")
        for settings in (
            Settings(),
            Settings(jobs_database=database),
            Settings(jobs_database=database, data=tmp_path),  # which other replicas do not have
        ):
            with pytest.raises(JobsError, match="needs WHYBOX_JOBS_ARTIFACTS"):
                Artifacts.from_settings(settings)
        with pytest.raises(JobsError, match="file cannot be used"):
            Artifacts.from_settings(Settings(jobs_artifacts=str(tmp_path / "file")))
        with pytest.raises(JobsError, match="WHYBOX_JOBS_ARTIFACTS cannot be used"):
            Artifacts.from_settings(Settings(jobs_artifacts="nosuch://bucket"))
