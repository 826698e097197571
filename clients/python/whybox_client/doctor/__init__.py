"""What is wrong with an installation, a machine or a service, and how to mend it.

`examine` makes every check that fits what is installed: a light client is not told that it has no Java.
Nothing here imports what it checks; what might crash or hang is tried in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from whybox_client.doctor import archives, families, installation, machine, service
from whybox_client.doctor.findings import Finding

if TYPE_CHECKING:
    from whybox_client import Client


@dataclass(frozen=True)
class Wanted:
    """What is to be examined.

    Attributes:
        url: the service that ought to answer; None: none.
        model_store: folder with the archives.
        host: address that `whybox serve` is to listen at.
        ports: those that it is to listen on.
        disk_bytes, memory_bytes: how much must be free.
    """

    url: str | None
    model_store: Path
    host: str
    ports: tuple[int, ...]
    disk_bytes: int
    memory_bytes: int


def examine(wanted: Wanted, connect: Callable[..., Client]) -> Iterator[Finding]:
    """Make the checks one after the other; a check that fails itself is a finding too.

    Args:
        wanted: what is to be examined.
        connect: makes the client of a URL, with the settings of `Client`.
    """
    extras = installation.Extras.here()
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("Python", installation.python),
        ("packages", extras.findings),
        ("protobuf", installation.stubs),
    ]
    if not extras.light:
        checks += [
            ("Java", installation.java),
            ("torch", installation.torch),
            ("families", families.findings),
            ("TorchServe", installation.torchserve),
            *((f"port {port}", partial(machine.port, wanted.host, port)) for port in wanted.ports),
            ("model store", partial(archives.store, wanted.model_store)),
            ("disk", partial(machine.disk, wanted.model_store, wanted.disk_bytes)),
            ("temporary files", partial(machine.temporary, wanted.disk_bytes)),
            ("memory", partial(machine.memory, wanted.memory_bytes)),
        ]
    if wanted.url is not None:
        checks.append(("service", partial(service.reachable, wanted.url, connect)))
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:
            yield Finding(name, "warning", f"could not be checked: {type(error).__name__}: {error}")
