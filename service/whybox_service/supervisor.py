"""`whybox serve`: TorchServe and the gateway as one process tree that starts, runs and ends together.

    serve ─┬─ guard ── java ─┬─ worker of the first model
           │                 └─ …
           └─ guard ── gateway

Each guard kills what it guards once the supervisor is gone, however it went.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from whybox_service import torchserve
from whybox_service.files import write_json
from whybox_service.java import NoJavaError, find_java
from whybox_service.signals import Waiter, waiting_for

GATEWAY_GRACE_SECONDS = 15.0
TORCHSERVE_GRACE_SECONDS = 2.0
STARTUP_SECONDS = 600.0
# A Unix socket's path, in TorchServe's temporary directory, has at most 107 bytes.
MAX_DIRECTORY_LENGTH = 70
_LOOK_SECONDS = 0.25
_LOOK_PATIENCE_SECONDS = 5.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class ServeError(Exception):
    """The service cannot start or go on; the message says why."""


def serve(
    model_store: Path,
    models: list[str] | None,
    host: str,
    port: int,
    grpc_port: int,
    *,
    ready_file: Path | None = None,
    log_dir: Path | None = None,
    startup_seconds: float = STARTUP_SECONDS,
) -> int:
    """Run TorchServe and the gateway until SIGINT or SIGTERM.

    Args:
        model_store: folder with the archives.
        models: names of the archives to serve; None for all in the folder.
        host: address that the gateway listens on; TorchServe stays on loopback.
        port: port of REST; 0 takes a free one.
        grpc_port: port of gRPC; 0 takes a free one.
        ready_file: gets the addresses as JSON once every model can answer.
        log_dir: folder for TorchServe's logs; None for one that is gone afterwards.
        startup_seconds: how long the models may take to load.

    Returns:
        0 after a stop that was asked for, 1 where something could not start or ended by itself.
    """
    try:
        names = find_archives(model_store, models)
        with waiting_for(*_STOP_SIGNALS, signal.SIGCHLD) as waiter, ExitStack() as stack:
            tree = _Tree(model_store.resolve(), names, log_dir, waiter, stack)
            tree.start(host, port, grpc_port)
            if tree.wait_until_ready(startup_seconds):
                _greet(tree.addresses())
                if ready_file is not None:
                    stack.callback(ready_file.unlink, missing_ok=True)
                    write_json(ready_file, tree.addresses())
                tree.wait_until_stopped()
            _say("stopping")
    except (ServeError, NoJavaError, ModuleNotFoundError) as error:
        _say(f"whybox: {error}", sys.stderr)
        return 1
    return 0


def find_archives(model_store: Path, models: Sequence[str] | None) -> list[str]:
    """Return the names of the archives to serve.

    Raises:
        ServeError: where there is none, or one that was asked for is not there.
    """
    there = sorted(path.stem for path in model_store.glob("*.mar") if _NAME.fullmatch(path.stem))
    if not there:
        raise ServeError(f"there is no archive in {model_store}; `whybox models build` makes them")
    for name in models or ():
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(there)}"
            raise ServeError(f"there is no archive {name}.mar in {model_store}; {hint}")
    return list(dict.fromkeys(models)) if models else there


class _Child:
    """A guarded process."""

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        grace: float,
        *,
        output: TextIO | None = None,
        directory: Path | None = None,
    ) -> None:
        self.name = name
        guard = [sys.executable, "-m", "whybox_service.guard", str(grace), str(directory or "")]
        self._guard = subprocess.Popen(
            [*guard, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self._guard.poll() is not None

    def stop(self, waiter: Waiter) -> None:
        """Let it finish what it does, for its grace; a signal meanwhile ends it at once."""
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        while not self.ended:
            came, _ = waiter.wait(1.0)
            if came.intersection(_STOP_SIGNALS):
                self._guard.terminate()


class _Tree:
    """The processes of one `serve`, and the folder that they share."""

    def __init__(
        self, model_store: Path, models: list[str], log_dir: Path | None, waiter: Waiter, stack: ExitStack
    ) -> None:
        self._model_store = model_store
        self._models = models
        self._waiter = waiter
        self._stack = stack
        self._java = find_java()
        self._ports = torchserve.Ports.free()
        self._directory = _private_directory()
        # TorchServe's guard removes it as well, should this process be killed.
        stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        self._logs = log_dir.resolve() if log_dir is not None else self._directory / "logs"
        self._address_file = self._directory / "gateway.json"
        self._children: list[_Child] = []
        self._stop_asked = False

    def start(self, host: str, port: int, grpc_port: int) -> None:
        """Start TorchServe and the gateway; leaving the stack stops them, the gateway first."""
        store, directory, ports = self._model_store, self._directory, self._ports
        self._logs.mkdir(parents=True, exist_ok=True)
        torchserve.write_config(directory, self._logs, torchserve.properties(ports, store, self._models))
        self._add(
            _Child(
                "TorchServe",
                torchserve.command(self._java, directory, store),
                torchserve.environment(directory, self._logs),
                TORCHSERVE_GRACE_SECONDS,
                output=self._stack.enter_context((self._logs / "java.log").open("a")),
                directory=directory,
            )
        )
        environment = {
            "WHYBOX_LOG_LEVEL": "warning",
            **os.environ,
            "WHYBOX_HOST": host,
            "WHYBOX_PORT": str(port),
            "WHYBOX_GRPC_PORT": str(grpc_port),
            "WHYBOX_INFERENCE_URL": ports.url(ports.inference),
            "WHYBOX_MANAGEMENT_URL": ports.url(ports.management),
            "WHYBOX_ADDRESS_FILE": str(self._address_file),
        }
        gateway = [sys.executable, "-m", "whybox_service.app"]
        self._add(_Child("the gateway", gateway, environment, GATEWAY_GRACE_SECONDS))
        _say(f"loading {', '.join(self._models)} on Java {self._java.major} ({self._java.origin})")

    def wait_until_ready(self, seconds: float) -> bool:
        """Wait until every model can answer; return False where a signal asked to stop before.

        Raises:
            ServeError: where a process ended, or after that many seconds, with what is not ready.
        """
        patience = time.monotonic() + seconds
        reasons = "the gateway does not listen"
        while self._go_on(_LOOK_SECONDS):
            if self._address_file.exists():
                reasons = _unready(json.loads(self._address_file.read_text())["rest"])
                if not reasons:
                    return True
            if time.monotonic() > patience:
                raise ServeError(f"not ready after {seconds:g} s: {reasons}\n{self._last_words()}")
        self._check_children()
        return False

    def addresses(self) -> dict[str, Any]:
        """Return where everything is."""
        ports = self._ports
        return {
            **json.loads(self._address_file.read_text()),
            "models": self._models,
            "torchserve": {
                "inference": ports.url(ports.inference),
                "management": ports.url(ports.management),
                "metrics": ports.url(ports.metrics) + "/metrics",
            },
            "logs": str(self._logs),
        }

    def wait_until_stopped(self) -> None:
        """Wait for a signal that asks to stop.

        Raises:
            ServeError: where a process ended by itself.
        """
        while self._go_on(None):
            pass
        self._check_children()

    def _add(self, child: _Child) -> None:
        self._children.append(child)
        self._stack.callback(child.stop, self._waiter)

    def _go_on(self, seconds: float | None) -> bool:
        """Wait for something to happen; return whether there is reason to go on."""
        came, _ = self._waiter.wait(seconds)
        self._stop_asked |= bool(came.intersection(_STOP_SIGNALS))
        return not self._stop_asked and not any(child.ended for child in self._children)

    def _check_children(self) -> None:
        for child in self._children:
            if child.ended and not self._stop_asked:
                raise ServeError(f"{child.name} ended by itself\n{self._last_words()}")

    def _last_words(self) -> str:
        """Return the last lines of the logs."""
        lines = []
        for path in sorted(self._logs.glob("*.log")):
            lines += [f"{path.stem}: {line}" for line in path.read_text(errors="replace").splitlines()[-12:]]
        return "\n".join(lines)


def _private_directory() -> Path:
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="whybox-", dir=base if len(base) <= MAX_DIRECTORY_LENGTH else "/tmp"))


def _unready(url: str) -> str:
    """Ask the gateway what is not ready; empty where everything is."""
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=_LOOK_PATIENCE_SECONDS):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            reasons = json.load(error).get("reasons", {})
        return "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or str(error)
    except (OSError, ValueError) as error:
        return str(error)


def _greet(addresses: dict[str, Any]) -> None:
    _say(
        f"""whybox is ready
  REST     {addresses["rest"]}  (try {addresses["rest"]}/docs)
  gRPC     {addresses["grpc"]}
  models   {", ".join(addresses["models"])}
  metrics  {addresses["rest"]}/metrics, {addresses["torchserve"]["metrics"]}
  logs     {addresses["logs"]}
Ctrl-C stops it."""
    )


def _say(text: str, to: TextIO | None = None) -> None:
    print(text, file=to, flush=True)
