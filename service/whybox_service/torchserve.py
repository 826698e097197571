"""How TorchServe is started: on loopback at every port, with nothing to be registered from outside."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from whybox_service.addresses import free_ports
from whybox_service.java import Java

LOOPBACK = "127.0.0.1"
MESSAGE_BYTES = 64 << 20
NETTY_THREADS = 4

# TorchServe writes six lines per request at its own settings; here a request leaves none.
LOG_CONFIG = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration>
  <Appenders>
    <RollingFile name="server" fileName="{logs}/torchserve.log" filePattern="{logs}/torchserve.%i.log">
      <PatternLayout pattern="%d{{ISO8601}} %-5p %c{{1}} - %m%n"/>
      <SizeBasedTriggeringPolicy size="10 MB"/>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
    <RollingFile name="workers" fileName="{logs}/workers.log" filePattern="{logs}/workers.%i.log">
      <PatternLayout pattern="%d{{ISO8601}} %t - %m%n"/>
      <SizeBasedTriggeringPolicy size="10 MB"/>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
  </Appenders>
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


@dataclass(frozen=True)
class Ports:
    """The ports of one TorchServe, all on loopback."""

    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int
    first_worker: int

    @classmethod
    def free(cls) -> Ports:
        """Choose free ones."""
        return cls(*free_ports(6))

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


def write_config(directory: Path, logs: Path, settings: dict[str, str]) -> None:
    """Write what `command` names into a directory of its own."""
    lines = (f"{key}={value}".replace("\\", "\\\\") for key, value in settings.items())
    (directory / "config.properties").write_text("\n".join(lines) + "\n")
    (directory / "log4j2.xml").write_text(LOG_CONFIG.format(logs=logs))
    (directory / "tmp").mkdir()


def command(java: Java, directory: Path, model_store: Path) -> list[str]:
    """Return the command that runs TorchServe in the foreground.

    It is what ``torchserve --foreground --ncs`` runs in the end. Started directly there is no process
    between, no file with a process id in the shared temporary directory, and no TS_CONFIG_FILE that wins.
    """
    spec = find_spec("ts")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("TorchServe is not installed: pip install 'whybox[serve]'", name="ts")
    home = Path(spec.origin).parent.parent
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


def environment(directory: Path, logs: Path) -> dict[str, str]:
    """Return the environment for TorchServe and its workers: this Python's programs come first."""
    programs = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": programs + os.pathsep + os.environ.get("PATH", os.defpath),
        "TMPDIR": str(directory / "tmp"),
        "LOG_LOCATION": str(logs),
        "METRICS_LOCATION": str(logs),
    }
