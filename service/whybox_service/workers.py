"""TorchServe and its workers alone, for a gateway in another container; and the check of their health.

    python -m whybox_service.workers serve --host 0.0.0.0 --model-store /opt/model_store
    python -m whybox_service.workers probe --model-store /opt/model_store

TorchServe has no authentication, and whoever reaches its ports has its workers. So `--host` is loopback
unless it is given, and beyond loopback something else must see to it that the gateway alone reaches the
ports: a network policy, or a network of containers. Registering models is off either way. Logs go to standard
output.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from whybox_proto.departures import VARIABLE as DEPARTURES
from whybox_service import addresses, torchserve
from whybox_service.children import STOP_SIGNALS, Child
from whybox_service.java import NoJavaError, find_java
from whybox_service.loading import Loading
from whybox_service.parts import ServeError
from whybox_service.signals import waiting_for
from whybox_service.supervisor import SECRETS, find_archives

# TorchServe stops within some 3 s; it breaks off what its workers have in hand.
GRACE_SECONDS = 10.0
_TICK_SECONDS = 1.0


def main(arguments: list[str]) -> int:
    """Serve, or check; return the exit status."""
    given = _parser().parse_args(arguments)
    try:
        names = find_archives(given.model_store, given.models)
        if given.what == "probe":
            return probe(given.host, given.management_port, names)
        ports = torchserve.Ports(
            inference=given.inference_port,
            management=given.management_port,
            metrics=given.metrics_port,
            grpc_inference=given.grpc_inference_port,
            grpc_management=given.grpc_management_port,
            first_worker=given.first_worker_port,
        )
        return serve(given.model_store.resolve(), names, given.host, ports)
    except (ServeError, NoJavaError, ModuleNotFoundError, OSError) as error:
        print(f"whybox: {error}", file=sys.stderr)
        return 1


def serve(model_store: Path, models: list[str], host: str, ports: torchserve.Ports) -> int:
    """Run TorchServe until SIGINT or SIGTERM, or until it ends by itself.

    Args:
        model_store: folder with the archives.
        models: names of the archives to serve.
        host: address that inference, management and metrics listen on; gRPC, unused, stays on loopback.
        ports: of this TorchServe.

    Returns:
        0 after a stop that was asked for, 1 where it ended by itself.

    Raises:
        NoJavaError: where there is no Java.
        ModuleNotFoundError: where TorchServe is not installed.
        OSError: where a port cannot be listened on, or nothing can be written to the temporary directory.
    """
    java = find_java()
    for port in (ports.inference, ports.management, ports.metrics):
        addresses.listen(host, port).close()
    with waiting_for(*STOP_SIGNALS, signal.SIGCHLD) as waiter, ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="whybox-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        settings = torchserve.properties(ports, model_store, models) | {
            f"{name}_address": f"http://{addresses.join(host, port)}"
            for name, port in (
                ("inference", ports.inference),
                ("management", ports.management),
                ("metrics", ports.metrics),
            )
        }
        torchserve.write_config(directory, None, settings)
        environment = torchserve.environment(directory, directory / "logs")
        if shared := os.environ.get(DEPARTURES):
            environment[DEPARTURES] = shared
        child = Child(
            torchserve.command(java, directory, model_store),
            {name: value for name, value in environment.items() if name not in SECRETS},
            GRACE_SECONDS,
            directory,
        )
        stack.callback(child.bury)
        while not child.ended:
            came, _ = waiter.wait(_TICK_SECONDS)
            if came & STOP_SIGNALS:
                child.stop(waiter)
                return 0
        print(f"whybox: TorchServe ended by itself ({child.how_it_ended})", file=sys.stderr)
        return 1


def probe(host: str, management_port: int, models: list[str]) -> int:
    """Say, as an exit status, whether every model has a worker that is ready; the others go to stderr."""
    loading = Loading(f"http://{addresses.join(addresses.reachable(host), management_port)}", models)
    loading.look()
    for name in loading.missing:
        print(f"{name}: it has no worker that is ready", file=sys.stderr)
    return 1 if loading.missing else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m whybox_service.workers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("serve", "probe"))
    parser.add_argument("--model-store", type=Path, required=True, help="folder with the archives")
    parser.add_argument(
        "--model", dest="models", action="append", help="name of an archive; again for more. Default: all"
    )
    parser.add_argument("--host", default=torchserve.LOOPBACK, help="address to listen on (%(default)s)")
    for name, port in (
        ("inference", 8080),
        ("management", 8081),
        ("metrics", 8082),
        ("grpc-inference", 7070),
        ("grpc-management", 7071),
        ("first-worker", 9000),
    ):
        parser.add_argument(f"--{name}-port", type=int, default=port, help="(%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
