"""How TorchServe is started: on loopback at every port, with nothing to be registered from outside."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from xml.sax.saxutils import quoteattr

import yaml

from whybox_proto.departures import VARIABLE as DEPARTURES
from whybox_service.java import Java

LOOPBACK = "127.0.0.1"
MESSAGE_BYTES = 64 << 20
NETTY_THREADS = 4

# What the handlers tell (`whybox.torchserve.metrics`), for TorchServe's metrics.yaml. Seconds, because the
# buckets of TorchServe's histograms are fixed: 5 ms to 10 s.
WORKER_METRICS = {
    "histogram": [
        {
            "name": "whybox_worker_request_seconds",
            "unit": "Seconds",
            "dimensions": ["model", "operation", "code"],
        },
        {
            "name": "whybox_worker_stage_seconds",
            "unit": "Seconds",
            "dimensions": ["model", "operation", "stage"],
        },
    ],
    "counter": [
        {"name": "whybox_worker_detections_total", "unit": "Count", "dimensions": ["model", "operation"]}
    ],
}

LOG_LINES = {
    "text": {
        "server": "%d{ISO8601} %-5p %c{1} - %m%n",
        "workers": "%d{ISO8601} %t - %m%n",
    },
    # The fields of the gateway's own lines.
    "json": dict.fromkeys(
        ("server", "workers"),
        '{"time":"%d{yyyy-MM-dd\'T\'HH:mm:ss.SSS}{UTC}+00:00","level":"%p{lowerCase=true}","logger":"%c{1}",'
        '"thread":"%enc{%t}{JSON}","message":"%enc{%m}{JSON}","exception":"%enc{%ex}{JSON}"}%n',
    ),
}

# TorchServe writes six lines per request at its own settings; here a request leaves none.
LOG_CONFIG = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders>
{appenders}  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="MODEL_LOG" level="info" additivity="false"><AppenderRef ref="workers"/></Logger>
    <Logger name="org.pytorch.serve.wlm" level="warn"/>
    <Logger name="org.pytorch.serve.job" level="warn"/>
    <Root level="info"><AppenderRef ref="server"/></Root>
  </Loggers>
</Configuration>
"""
LOG_FILES = """\
    <RollingFile name="server" fileName="{logs}/torchserve.log" filePattern="{logs}/torchserve.%i.log">
      <PatternLayout pattern={server}/>
      <SizeBasedTriggeringPolicy size="10 MB"/>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
    <RollingFile name="workers" fileName="{logs}/workers.log" filePattern="{logs}/workers.%i.log">
      <PatternLayout pattern={workers}/>
      <SizeBasedTriggeringPolicy size="10 MB"/>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
"""
LOG_CONSOLE = """\
    <Console name="server"><PatternLayout pattern={server}/></Console>
    <Console name="workers"><PatternLayout pattern={workers}/></Console>
"""


@dataclass(frozen=True)
class Ports:
    """The ports of one TorchServe, all on loopback."""

    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int
    first_worker: int

    @property
    def listening(self) -> tuple[int, ...]:
        """Those that TorchServe listens on; workers have Unix sockets, named after the rest."""
        return (self.inference, self.management, self.metrics, self.grpc_inference, self.grpc_management)

    def url(self, port: int) -> str:
        """Return the address of one of the HTTP ports."""
        return f"http://{LOOPBACK}:{port}"


def properties(ports: Ports, model_store: Path, models: Sequence[str]) -> dict[str, str]:
    """Return TorchServe's configuration for some archives of a model store."""
    return {
        "inference_address": ports.url(ports.inference),
        "management_address": ports.url(ports.management),
        "metrics_address": ports.url(ports.metrics),
        "grpc_inference_address": LOOPBACK,
        "grpc_management_address": LOOPBACK,
        "grpc_inference_port": str(ports.grpc_inference),
        "grpc_management_port": str(ports.grpc_management),
        "initial_worker_port": str(ports.first_worker),
        "model_store": str(model_store),
        "load_models": ",".join(f"{name}={name}.mar" for name in models),
        "default_workers_per_model": "1",
        "max_request_size": str(MESSAGE_BYTES),
        "max_response_size": str(MESSAGE_BYTES),
        "number_of_netty_threads": str(NETTY_THREADS),
        "netty_client_threads": str(NETTY_THREADS),
        "metrics_mode": "prometheus",
        "enable_model_api": "false",
        "enable_envvars_config": "false",
        "install_py_dep_per_model": "false",
        "allowed_urls": f"file://{re.escape(str(model_store))}/.*",
        # Every port is on loopback, and the keys would expire within the hour.
        "disable_token_authorization": "true",
    }


def metrics_config() -> str:
    """Return TorchServe's own metrics.yaml with the workers' metrics in it.

    Raises:
        ModuleNotFoundError: where TorchServe is not installed.
    """
    own = yaml.safe_load((_home() / "ts" / "configs" / "metrics.yaml").read_text())
    for kind, metrics in WORKER_METRICS.items():
        own["model_metrics"].setdefault(kind, []).extend(metrics)
    return str(yaml.safe_dump(own, sort_keys=False))


def write_config(directory: Path, logs: Path | None, settings: dict[str, str]) -> None:
    """Write what `command` names into a directory of its own; without a folder for logs they go to stdout.

    The environment's ``WHYBOX_LOG_FORMAT`` is the logs' form, as it is the gateway's. What an earlier
    TorchServe left there goes: the sockets of its workers, and the archives that it unpacked.
    """
    metrics = directory / "metrics.yaml"
    metrics.write_text(metrics_config())
    settings = {**settings, "metrics_config": str(metrics)}
    lines = (f"{key}={value}".replace("\\", "\\\\") for key, value in settings.items())
    (directory / "config.properties").write_text("\n".join(lines) + "\n")
    form = LOG_LINES["json" if os.environ.get("WHYBOX_LOG_FORMAT") == "json" else "text"]
    patterns = {name: quoteattr(pattern) for name, pattern in form.items()}
    appenders = (LOG_CONSOLE if logs is None else LOG_FILES).format(logs=logs, **patterns)
    (directory / "log4j2.xml").write_text(LOG_CONFIG.format(appenders=appenders))
    shutil.rmtree(directory / "tmp", ignore_errors=True)
    (directory / "tmp").mkdir()
    departures(directory).mkdir(exist_ok=True)


def command(java: Java, directory: Path, model_store: Path) -> list[str]:
    """Return the command that runs TorchServe in the foreground.

    It is what ``torchserve --foreground --ncs`` runs in the end. Started directly there is no process
    between, no file with a process id in the shared temporary directory, and no TS_CONFIG_FILE that wins.
    """
    home = _home()
    return [
        str(java.path),
        "-XX:+ExitOnOutOfMemoryError",
        f"-Dmodel_server_home={home}",
        f"-Djava.io.tmpdir={directory / 'tmp'}",
        f"-Dlog4j.configurationFile={(directory / 'log4j2.xml').as_uri()}",
        "-cp",
        f"{home / 'ts' / 'frontend'}/*",
        "org.pytorch.serve.ModelServer",
        "--python",
        sys.executable,
        "-f",
        str(directory / "config.properties"),
        "-s",
        str(model_store),
        "-ncs",
    ]


def _home() -> Path:
    """Return the folder that TorchServe is installed in."""
    spec = find_spec("ts")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("TorchServe is not installed: pip install 'whybox[serve]'", name="ts")
    return Path(spec.origin).parent.parent


def environment(directory: Path, logs: Path) -> dict[str, str]:
    """Return the environment for TorchServe and its workers: this Python's programs come first."""
    programs = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": programs + os.pathsep + os.environ.get("PATH", os.defpath),
        "TMPDIR": str(directory / "tmp"),
        "LOG_LOCATION": str(logs),
        "METRICS_LOCATION": str(logs),
        DEPARTURES: str(departures(directory)),
    }


def departures(directory: Path) -> Path:
    """Return the folder in which workers are told whose client has gone, in TorchServe's own directory."""
    return directory / "departures"
