"""What tests share: archives of two models, and the whole service running on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

if TYPE_CHECKING:
    from sampling_parts import Sampler

# The tests' limit; on an idle machine the models are there within seconds.
PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Live:
    """A running `whybox serve`.

    Attributes:
        rest: URL of REST.
        grpc: URL of gRPC, as the SDK takes it.
        models: names of the models.
        torchserve: URLs of TorchServe's `inference`, `management` and `metrics`.
        logs: folder with TorchServe's logs.
        process: the supervisor.
        tls: whether both transports speak TLS.
    """

    rest: str
    grpc: str
    models: list[str]
    torchserve: dict[str, str]
    logs: Path
    process: psutil.Process
    tls: bool = False

    @property
    def model(self) -> str:
        """The model that a test takes when any will do."""
        return self.models[0]

    @property
    def target(self) -> str:
        """The target of a gRPC channel."""
        return self.grpc.partition("://")[2]


@contextmanager
def serving(
    store: Path, scratch: Path, *, env: dict[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[Live]:
    """Run `whybox serve` on free ports while the block lasts; then nothing of it is left."""
    ready_file = scratch / "ready.json"
    output = scratch / "serve.log"
    needed = ["--port", "0", "--grpc-port", "0", "--model-store", store, "--ready-file", ready_file]
    with output.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "whybox_client.cli", "serve", *map(str, needed), *options],
            env={**os.environ, "OMP_NUM_THREADS": "1", "WHYBOX_DATA": str(scratch / "data"), **(env or {})},
            stdout=log,
            stderr=log,
        )
    tree: list[psutil.Process] = []
    try:
        addresses = _wait_for(ready_file, process, output)
        logs = Path(addresses.pop("logs"))
        addresses["grpc"] = ("grpcs://" if addresses.get("tls") else "grpc://") + addresses["grpc"]
        yield Live(**addresses, logs=logs, process=psutil.Process(process.pid))
        if process.poll() is None:
            tree = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_SECONDS)
    _, left = psutil.wait_procs(tree, timeout=0)
    assert not left, f"orphans: {left}"
    assert not logs.exists(), "the private folder is left"


def _wait_for(ready_file: Path, process: subprocess.Popen[bytes], output: Path) -> dict[str, Any]:
    patience = time.monotonic() + PATIENCE_SECONDS
    while not ready_file.exists():
        assert process.poll() is None, f"whybox serve ended:\n{output.read_text()}"
        assert time.monotonic() < patience, f"whybox serve is not ready:\n{output.read_text()}"
        time.sleep(0.1)
    addresses: dict[str, Any] = json.loads(ready_file.read_text())
    return addresses


@pytest.fixture(scope="session", autouse=True)
def _no_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what services write by default out of the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store with the archives of a one-stage and a two-stage detector, of random weights."""
    from builders import write_recipe
    from whybox.archives import build

    store = tmp_path_factory.mktemp("model_store")
    for architecture in ("retinanet", "faster-rcnn"):
        build(write_recipe(tmp_path_factory.mktemp("recipe"), architecture), store)
    return store


@pytest.fixture(scope="session")
def live(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The whole service, on two models."""
    with serving(archives, tmp_path_factory.mktemp("live")) as running:
        yield running


@pytest.fixture(scope="session")
def picture() -> bytes:
    """A picture, in JPEG, in which the models of `live` find objects."""
    from builders import encoded, random_image

    return encoded(random_image(), "JPEG")


@pytest.fixture(scope="session")
def sampler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sampler]:
    """The whole service, on models that sample and measure without torch."""
    from sampling_parts import sampling_service

    with sampling_service(tmp_path_factory.mktemp("sampler")) as running:
        yield running
