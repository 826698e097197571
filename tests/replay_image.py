"""Replays the Dockerfile's steps in folders of Debian, for machines that have no container engine.

    python tests/replay_image.py build serve /var/tmp/image
    python tests/replay_image.py run serve /var/tmp/image
    python tests/replay_image.py health serve /var/tmp/image

Needs root, debootstrap, a Debian mirror and a package registry, 25 GB of disk and some minutes; so it is no
part of `make test`. What differs from an engine: the base is Debian's own Python 3.11 on a minimal Debian
bookworm in place of the image python:3.11-slim-bookworm; a stage is a folder and its processes are chrooted,
so they share the machine's network and process table, and no limit on memory holds them.
pip's settings are the machine's own (PIP_*, /etc/pip.conf, its certificates).
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dockerfile

ROOT = Path(__file__).parent.parent
MIRROR = "http://deb.debian.org/debian"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"


def main(arguments: list[str]) -> int:
    """Build a target, run its CMD until it ends, or run its health check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("build", "run", "health"))
    parser.add_argument("target")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="for run and health")
    parser.add_argument(
        "--read-only",
        action="store_true",
        help="for run: the file system is, but for /tmp, as in compose.yaml",
    )
    parser.add_argument("command", nargs="*", help="in place of the target's CMD, after --")
    given = parser.parse_args(arguments)
    if os.geteuid() != 0:
        parser.error("chroot and debootstrap need root")
    replay = Replay(dockerfile.read(ROOT / "Dockerfile"), given.folder.resolve())
    if given.what == "build":
        replay.build(given.target)
        return 0
    word = "CMD" if given.what == "run" else "HEALTHCHECK"
    instruction = replay.file.effective(given.target, word)
    if instruction is None:
        parser.error(f"{given.target} has no {word}")
    variables = dict(pair.split("=", 1) for pair in given.env)
    command = given.command or instruction.command
    return replay.start(given.target, command, variables, read_only=given.read_only)


class Replay:
    """The stages of a Dockerfile as folders: `STAGE/` is the file system that the stage leaves."""

    def __init__(self, file: dockerfile.Dockerfile, folder: Path) -> None:
        self.file = file
        self._folder = folder
        self._ignored = [
            line.removeprefix("**/")
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line and line[0] not in "#!" and line != "*"
        ]

    def build(self, name: str) -> None:
        """Build a stage and, before it, those that it needs; what is there already stays."""
        target = self._folder / name
        if target.exists():
            return
        stage = self.file.stages[name]
        for instruction in stage.instructions:
            if instruction.word == "COPY" and (source := instruction.flags.get("from")):
                self.build(source)
        base = self._folder / (stage.base if stage.base in self.file.stages else "python")
        self._python(base) if base.name == "python" else self.build(stage.base)
        partial = self._folder / f"{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _run(["cp", "-a", "--reflink=auto", base, partial])
        variables = self._environment(stage.base, {})
        where, user = self._inherited(stage)
        for instruction in stage.instructions:
            began = time.monotonic()
            if instruction.word == "WORKDIR":
                where = instruction.rest
                _inside(partial, where).mkdir(parents=True, exist_ok=True)
            elif instruction.word == "USER":
                user = instruction.rest
            elif instruction.word == "ENV":
                variables = self._with(variables, instruction)
            elif instruction.word == "COPY":
                self._copy(partial, where, instruction)
            elif instruction.word == "RUN":
                shell = ["/bin/sh", "-c", instruction.rest]
                with _mounted(partial):
                    _run(_chrooted(partial, where, user, variables | _pip(), shell))
            seconds = time.monotonic() - began
            print(f"{name}: line {instruction.line}: {instruction.word} ({seconds:.1f} s)", flush=True)
        partial.rename(target)

    def start(self, name: str, command: list[str], variables: dict[str, str], *, read_only: bool) -> int:
        """Run a command in a built stage, as its user, and return how it ended."""
        where, user = self._inherited(self.file.stages[name], own=True)
        environment = self._environment(name, {"HOME": "/home/whybox"}) | variables
        folder = self._folder / name
        with _mounted(folder), _read_only(folder) if read_only else contextlib.nullcontext(folder) as root:
            done = subprocess.run(_chrooted(root, where, user, environment, command), check=False)
        return done.returncode

    def _environment(self, name: str, more: dict[str, str]) -> dict[str, str]:
        given = {"PATH": PATH, **more}
        return self.file.environment(name, given) if name in self.file.stages else given

    def _inherited(self, stage: dockerfile.Stage, *, own: bool = False) -> tuple[str, str]:
        start = stage.name if own else stage.base
        if start not in self.file.stages:
            return "/", "0:0"
        where, user = (self.file.effective(start, word) for word in ("WORKDIR", "USER"))
        return where.rest if where else "/", user.rest if user else "0:0"

    def _with(self, variables: dict[str, str], instruction: dockerfile.Instruction) -> dict[str, str]:
        pairs = (word.split("=", 1) for word in shlex.split(instruction.rest))
        return {**variables, **{key: dockerfile.expand(value, variables) for key, value in pairs}}

    def _copy(self, partial: Path, where: str, instruction: dockerfile.Instruction) -> None:
        *sources, destination = instruction.arguments.split()
        source_root = self._folder / instruction.flags["from"] if "from" in instruction.flags else ROOT
        into = _inside(partial, destination if destination.startswith("/") else f"{where}/{destination}")
        for source in sources:
            path = source_root / source.lstrip("/")
            if not path.is_dir():
                shutil.copy2(path, into / path.name if into.is_dir() else into)
            elif source_root != ROOT:
                _run(["cp", "-a", "--reflink=auto", path, into])
            else:
                shutil.copytree(path, into, ignore=self._ignore, dirs_exist_ok=True)

    def _ignore(self, folder: str, names: list[str]) -> set[str]:
        relative = Path(folder).relative_to(ROOT)
        return {
            name
            for name in names
            for pattern in self._ignored
            if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(str(relative / name), pattern)
        }

    def _python(self, base: Path) -> None:
        """Make what stands in for the base image: a minimal Debian with its Python as `python`."""
        if base.exists():
            return
        partial = base.with_name("python.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.parent.mkdir(parents=True, exist_ok=True)
        _run(["debootstrap", "--variant=minbase", "bookworm", partial, MIRROR])
        shutil.copy2("/etc/resolv.conf", partial / "etc/resolv.conf")
        install = (
            "apt-get update && apt-get install --yes --no-install-recommends python3.11-venv ca-certificates"
        )
        with _mounted(partial):
            _run(_chrooted(partial, "/", "0:0", {"PATH": PATH}, ["/bin/sh", "-c", install]))
        (partial / "usr/local/bin/python").symlink_to("/usr/bin/python3.11")
        for path in ("etc/pip.conf", CERTIFICATES):
            if Path("/", path).exists():
                shutil.copy2(Path("/", path), partial / path)
        partial.rename(base)


def _inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _pip() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


def _chrooted(root: Path, where: str, user: str, variables: dict[str, str], command: list[str]) -> list[str]:
    pairs = [f"{name}={value}" for name, value in variables.items()]
    change = ["chroot", f"--userspec={user}", "--groups=", str(root)]
    return [*change, "/usr/bin/env", "--ignore-environment", f"--chdir={where}", *pairs, *command]


@contextlib.contextmanager
def _mounted(root: Path) -> Iterator[None]:
    """Give a folder the file systems of the kernel while the block lasts."""
    done: list[Path] = []
    try:
        for kind, options, path in (
            ("proc", "nosuid,nodev,noexec", root / "proc"),
            ("tmpfs", "mode=1777,size=2g", root / "dev/shm"),
        ):
            path.mkdir(exist_ok=True)
            if not os.path.ismount(path):
                _run(["mount", "-t", kind, "-o", options, kind, path])
                done.append(path)
        yield
    finally:
        for path in reversed(done):
            subprocess.run(["umount", "--lazy", path], check=False)


@contextlib.contextmanager
def _read_only(root: Path) -> Iterator[Path]:
    """Give a view of a folder in which /tmp alone can be written to, and that is empty at first."""
    view = root.with_name(f"{root.name}.view")
    view.mkdir(exist_ok=True)
    _run(["mount", "--rbind", root, view])
    try:
        _run(["mount", "-o", "remount,ro,bind", view])
        _run(["mount", "-t", "tmpfs", "-o", "mode=1777,size=2g", "tmpfs", view / "tmp"])
        yield view
    finally:
        subprocess.run(["umount", "--lazy", "--recursive", view], check=False)
        view.rmdir()


def _run(command: list[str | Path]) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
