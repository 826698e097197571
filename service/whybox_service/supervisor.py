"""`whybox serve`: TorchServe and the gateway as one process tree that starts, runs and ends together.

    serve ─┬─ guard ── java ─┬─ worker of the first model
           │                 └─ …
           └─ guard ── gateway

Each guard kills what it guards once the supervisor is gone, however it went. Once the service was ready, what
ends by itself or hangs is started again, on the same ports.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from whybox_proto.departures import VARIABLE as DEPARTURES
from whybox_service import addresses, probe, torchserve
from whybox_service.children import STOP_SIGNALS, Child
from whybox_service.files import write_json
from whybox_service.heartbeat import Repeating
from whybox_service.java import NoJavaError, find_java
from whybox_service.jobs.database import DataFolder, JobsError
from whybox_service.loading import Loading, last_words, tail
from whybox_service.parts import Part, ServeError
from whybox_service.restarts import MAX_RESTARTS, Restarts
from whybox_service.signals import Waiter, waiting_for

GATEWAY_GRACE_SECONDS = 15.0
TORCHSERVE_GRACE_SECONDS = 2.0
STARTUP_SECONDS = 600.0
HUNG_SECONDS = 30.0
# A Unix socket's path, in TorchServe's temporary directory, has at most 107 bytes.
MAX_DIRECTORY_LENGTH = 70
# What a worker, which runs an archive's code, need not know.
SECRETS = frozenset(
    {"WHYBOX_API_KEY", "WHYBOX_API_KEYS", "WHYBOX_API_KEYS_FILE", "WHYBOX_JOBS_DATABASE", "WHYBOX_TLS_KEY"}
)
_LOADING_SECONDS = 0.5
_READINESS_SECONDS = 1.0
_TICK_SECONDS = 0.25
_LAST_LINES = 12
_LAST_BYTES = 1 << 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


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
    max_restarts: int = MAX_RESTARTS,
    hung_seconds: float = HUNG_SECONDS,
    data: Path | None = None,
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
        max_restarts: how often, within ten minutes, TorchServe or the gateway is started again; 0: never.
        hung_seconds: how long either may leave every question unanswered before it is killed.
        data: folder for inversion jobs; None for one in the home directory.

    Returns:
        0 after a stop that was asked for, 1 where something could not start, or ended too often.
    """
    try:
        names = find_archives(model_store, models)
        with waiting_for(*STOP_SIGNALS, signal.SIGCHLD) as waiter, ExitStack() as stack:
            tree = _Tree(model_store.resolve(), names, log_dir, data, waiter, stack)
            tree.prepare(host, port, grpc_port, max_restarts, hung_seconds)
            if tree.wait_until_ready(startup_seconds):
                _greet(tree.addresses())
                if ready_file is not None:
                    stack.callback(ready_file.unlink, missing_ok=True)
                    write_json(ready_file, tree.addresses())
                tree.keep_running()
            _say("stopping")
    except (ServeError, NoJavaError, ModuleNotFoundError, OSError) as error:
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


class _Tree:
    """The processes of one `serve`, and the folder that they share."""

    def __init__(
        self,
        model_store: Path,
        models: list[str],
        log_dir: Path | None,
        data: Path | None,
        waiter: Waiter,
        stack: ExitStack,
    ) -> None:
        self._model_store = model_store
        self._models = models
        self._waiter = waiter
        self._stack = stack
        self._java = find_java()
        self._directory = _private_directory()
        # The guards remove it as well, should this process be killed.
        stack.callback(shutil.rmtree, self._directory, ignore_errors=True)
        self._logs = log_dir.resolve() if log_dir is not None else self._directory / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._jobs = self._where_jobs_are(data)
        self._address_file = self._directory / "gateway.json"
        self._ports = torchserve.Ports(*self._reserve(6, torchserve.LOOPBACK))
        self._parts: list[Part] = []
        self._stop_asked = False

    def prepare(
        self,
        host: str,
        port: int,
        grpc_port: int,
        max_restarts: int,
        hung_seconds: float,
    ) -> None:
        """Start TorchServe and the gateway; leaving the stack stops them, the gateway first."""
        ping = self._ports.url(self._ports.inference) + "/ping"
        listening = [number or self._reserve(1, host)[0] for number in (port, grpc_port)]
        java_log = self._stack.enter_context((self._logs / "java.log").open("a"))

        def add(name: str, start: Callable[[], Child], look: Callable[[float], bool]) -> None:
            part = Part(name, start, look, Restarts(max_restarts), hung_seconds, _say)
            try:
                part.start()
            except OSError as error:
                raise ServeError(f"{name} cannot be started: {error.strerror or error}") from error
            self._parts.append(part)
            self._stack.callback(part.stop, self._waiter)

        add("TorchServe", lambda: self._start_torchserve(java_log), lambda s: probe.answers(ping, s))
        add(
            "the gateway",
            lambda: self._start_gateway(host, *listening),
            lambda s: self._address_file.exists() and probe.answers(self._rest() + "/healthz", s),
        )
        _say(f"loading {', '.join(self._models)} on Java {self._java.major} ({self._java.origin})")

    def wait_until_ready(self, seconds: float) -> bool:
        """Wait until every model can answer; return False where a signal asked to stop before.

        Raises:
            ServeError: where a process ended or a model cannot be loaded; after that many seconds, with what
                is not ready.
        """
        loading = Loading(self._ports.url(self._ports.management), self._models)
        reasons = {"the gateway": "it does not listen"}

        def look() -> float:
            nonlocal reasons
            loading.look()
            if self._address_file.exists():
                reasons = self._unready(loading)
            return _LOADING_SECONDS

        patience = time.monotonic() + seconds
        looking = Repeating(look)
        try:
            while reasons and self._go_on():
                for part in self._parts:
                    try:
                        part.check_start()
                    except ServeError as error:
                        raise ServeError(f"{error}{self._last_words(part)}") from None
                for name in loading.hopeless:
                    words = last_words(self._logs, name)
                    raise ServeError(
                        f"the model {name} cannot be loaded; its worker ended again and again\n{words}"
                    )
                if time.monotonic() > patience:
                    words = "".join(self._last_words(part) for part in self._parts)
                    raise ServeError(f"not ready after {seconds:g} s: {_told(reasons)}{words}")
        finally:
            looking.stop()
        return not self._stop_asked

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

    def keep_running(self) -> None:
        """Start again what ends or hangs, and tell when the service is unready, until a signal says to stop.

        Raises:
            ServeError: where a process ended too often.
        """
        seen: tuple[float, dict[str, str]] = (time.monotonic(), {})
        loading = Loading(self._ports.url(self._ports.management), self._models)

        def look() -> float:
            nonlocal seen
            started = time.monotonic()
            seen = (started, self._unready(loading))
            return _READINESS_SECONDS

        told: set[str] = set()
        disturbed = float("-inf")
        unready_since: float | None = None
        looking = Repeating(look)
        try:
            while self._go_on():
                for part in self._parts:
                    try:
                        if part.tend():
                            disturbed = time.monotonic()
                            unready_since = unready_since or disturbed
                    except ServeError as error:
                        raise ServeError(f"{error}{self._last_words(part)}") from None
                looked, reasons = seen
                if looked < disturbed:
                    continue
                if reasons:
                    unready_since = unready_since or looked
                    if set(reasons) != told:
                        _say(f"not ready: {_told(reasons)}")
                elif unready_since is not None:
                    _say(f"ready again, after {time.monotonic() - unready_since:.1f} s")
                    unready_since = None
                told = set(reasons)
        finally:
            looking.stop()

    def _reserve(self, count: int, host: str) -> list[int]:
        try:
            return self._stack.enter_context(addresses.reserved_ports(count, host))
        except OSError as error:
            raise ServeError(error.strerror or str(error)) from error

    def _start_torchserve(self, output: TextIO) -> Child:
        for port in self._ports.listening:
            addresses.listen(torchserve.LOOPBACK, port).close()
        directory, store = self._directory, self._model_store
        settings = torchserve.properties(self._ports, store, self._models)
        torchserve.write_config(directory, self._logs, settings)
        environment = torchserve.environment(directory, self._logs)
        return Child(
            torchserve.command(self._java, directory, store),
            {name: value for name, value in environment.items() if name not in SECRETS},
            TORCHSERVE_GRACE_SECONDS,
            directory,
            output,
        )

    def _start_gateway(self, host: str, port: int, grpc_port: int) -> Child:
        ports = self._ports
        environment = {
            "WHYBOX_LOG_LEVEL": "warning",
            "MALLOC_ARENA_MAX": "2",  # glibc would keep the peaks of eight arenas a core
            **os.environ,
            "WHYBOX_HOST": host,
            "WHYBOX_PORT": str(port),
            "WHYBOX_GRPC_PORT": str(grpc_port),
            "WHYBOX_INFERENCE_URL": ports.url(ports.inference),
            "WHYBOX_MANAGEMENT_URL": ports.url(ports.management),
            "WHYBOX_ADDRESS_FILE": str(self._address_file),
            **self._jobs,
            DEPARTURES: str(torchserve.departures(self._directory)),
        }
        command = [sys.executable, "-m", "whybox_service.app"]
        return Child(command, environment, GATEWAY_GRACE_SECONDS, self._directory)

    def _where_jobs_are(self, chosen: Path | None) -> dict[str, str]:
        """Return the variables that say where inversion jobs are, all of them but what is a secret."""
        if chosen is None and (given := os.environ.get("WHYBOX_DATA")):
            chosen = Path(given)
        if chosen is not None:
            return {"WHYBOX_DATA": str(chosen.resolve())}
        if os.environ.get("WHYBOX_JOBS_DATABASE"):
            return {}
        folder = _data_home()
        lock = DataFolder(folder)
        try:
            lock.take()
        except JobsError as error:
            _say(f"inversions will be gone with this service: {error}")
            folder = self._directory / "data"
        lock.release()
        return {"WHYBOX_DATA": str(folder)}

    def _rest(self) -> str:
        return str(json.loads(self._address_file.read_text())["rest"])

    def _unready(self, loading: Loading) -> dict[str, str]:
        try:
            return probe.unready(self._rest())
        except probe.HiddenError:
            # The gateway takes the certificates of its clients alone; then TorchServe is asked.
            loading.look()
            return dict.fromkeys(loading.missing, "it has no worker that is ready")

    def _go_on(self) -> bool:
        """Wait a moment, or for something to happen; return whether nobody asked to stop."""
        came, _ = self._waiter.wait(_TICK_SECONDS)
        self._stop_asked |= bool(came & STOP_SIGNALS)
        return not self._stop_asked

    def _last_words(self, part: Part) -> str:
        """Return the last lines of TorchServe's logs; what the gateway had to say has been said on stderr."""
        if part is not self._parts[0]:
            return ""
        lines = [""]
        for path in sorted(self._logs.glob("*.log")):
            lines += [f"{path.stem}: {line}" for line in tail(path, _LAST_BYTES)[-_LAST_LINES:]]
        return "\n".join(lines)


def _data_home() -> Path:
    """Return where a user's programs keep their data, by the XDG base directory specification."""
    given = Path(os.environ.get("XDG_DATA_HOME") or "")
    return (given if given.is_absolute() else Path("~/.local/share").expanduser()) / "whybox"


def _private_directory() -> Path:
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="whybox-", dir=base if len(base) <= MAX_DIRECTORY_LENGTH else "/tmp"))


def _told(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())


def _greet(addresses: dict[str, Any]) -> None:
    rest, grpc = addresses["rest"], addresses["grpc"]
    _say(
        f"""whybox is ready
  REST     {rest}  (open it in a browser)
  gRPC     {f"grpcs://{grpc}" if addresses.get("tls") else grpc}
  models   {", ".join(addresses["models"])}
  metrics  {rest}/metrics, {addresses["torchserve"]["metrics"]}
  logs     {addresses["logs"]}
Ctrl-C stops it."""
    )


def _say(text: str, to: TextIO | None = None) -> None:
    # A full disk, or a reader that has gone, is no reason to end what works.
    with contextlib.suppress(OSError):
        print(text, file=to, flush=True)
