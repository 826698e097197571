"""`whybox keys`: API keys, and the file in which the service finds their hashes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from whybox_client.cli.failures import Failure

if TYPE_CHECKING:
    from whybox_service.keys import Entry

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group()
def keys() -> None:
    """Make API keys, and say whose there are."""


@keys.command()
@click.argument("name")
@click.option("--file", type=_FILE, help="File of the service's keys that gets the new one's hash.")
def new(name: str, file: Path | None) -> None:
    """Make a key, and print it: now, and never again.

    The key alone goes to standard output. Give the service its hash: with --file, or as the line that is
    printed otherwise, in the file that WHYBOX_API_KEYS_FILE names or in WHYBOX_API_KEYS. A name that is there
    already has then two keys, until the old line is taken out.
    """
    from whybox_service.keys import KeysError, entry_of, new_key

    key = new_key()
    try:
        entry = entry_of(name, key)
        if file is None:
            click.echo(f"the line for the service's file of keys: {entry}", err=True)
        else:
            before = _append(file, entry)
            click.echo(f"{file} has the new key's hash", err=True)
            if before:
                click.echo(
                    f"{name} has {before + 1} keys now; take the old line out once its clients have the new",
                    err=True,
                )
    except (KeysError, OSError) as error:
        raise Failure(str(error)) from error
    click.echo(key)


@keys.command("list")
@click.option(
    "--file", type=_FILE, required=True, envvar="WHYBOX_API_KEYS_FILE", show_envvar=True, help="File of keys."
)
def list_(file: Path) -> None:
    """Print the names of the keys in a file."""
    from whybox_service.keys import KeysError, read_file

    try:
        names = dict.fromkeys(entry.name for entry in read_file(file))
    except KeysError as error:
        raise Failure(str(error)) from error
    for name in names:
        click.echo(name)


def _append(path: Path, entry: Entry) -> int:
    """Add a line to a file of keys, made with mode 0600 if need be; return how many keys the name had.

    The line goes to the end in one write, under a lock. Putting a new file in the old one's place would
    change its owner and mode, and a container that the file is mounted into would never see it.

    Raises:
        KeysError: for a file that is none of keys; it stays as it was.
        OSError: where it cannot be written.
    """
    import fcntl  # not on every system, and needed nowhere else

    from whybox_service.keys import read_file

    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "rb+", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = sum(other.name == entry.name for other in read_file(path))
        end = os.pread(descriptor, 1, max(0, os.fstat(descriptor).st_size - 1))
        line = f"{entry}\n" if end in (b"", b"\n") else f"\n{entry}\n"
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    return before
