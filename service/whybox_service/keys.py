"""API keys: who may ask, known by hashes alone.

A key is 256 random bits (`new_key`), so nothing can be guessed from its hash: SHA-256, which is fast, is
right here. The slow, salted hashes that passwords need would cost every request tens of milliseconds and
protect nothing.

This module imports neither pydantic nor the transports: `whybox keys` uses it from the light client.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from whybox_proto.errors import ContractError
from whybox_service.watch import Watch

if TYPE_CHECKING:
    from whybox_service.settings import Settings

log = logging.getLogger(__name__)

#: Every key begins with it, so that scanners for lost secrets can find one.
PREFIX = "whybox_"
MAX_FILE_BYTES = 1 << 20

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_LINE = re.compile(r"(?P<name>[^:]*):sha256:(?P<digest>[0-9a-fA-F]{64})")
# Shorter ones were not made at random, and a fast hash would not protect them.
_KEY = re.compile(r"[!-~]{32,512}")
_FORM = "NAME:sha256:HEX, as `whybox keys new NAME` prints it"
_NONE = "there is no key in it; `whybox keys new NAME` makes one"
_EXPECTED = "Authorization: Bearer KEY"


class KeysError(ValueError):
    """Keys that cannot be used. The message says where and what was expected, never what is there."""


@dataclass(frozen=True)
class Entry:
    """One key that is accepted: its name, and the SHA-256 of its text."""

    name: str
    digest: bytes

    def __str__(self) -> str:
        """Write the entry as it stands in the file."""
        return f"{self.name}:sha256:{self.digest.hex()}"


def check_name(name: str) -> str:
    """Return a name that may be a key's: it becomes a label of metrics and a field of logs.

    Raises:
        KeysError: for another one.
    """
    if not _NAME.fullmatch(name):
        raise KeysError(
            "a key's name has 1 to 64 characters: a-z, 0-9, '.', '_' and '-', a letter or digit first"
        )
    return name


def new_key() -> str:
    """Make a key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def entry_of(name: str, key: str) -> Entry:
    """Return the entry under which a key is accepted."""
    return Entry(check_name(name), _digest(key))


def read_file(path: Path) -> list[Entry]:
    """Read a file of keys: one ``NAME:sha256:HEX`` a line; ``#`` begins a comment.

    Raises:
        KeysError: where the file cannot be read, may be written by everybody, or has a line that is none; the
            message names file and line.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise KeysError(f"{path}: not a regular file")
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error
    if mode & stat.S_IWOTH:
        raise KeysError(f"{path}: everybody may write to it, and so add keys; chmod o-w")
    if mode & stat.S_IROTH:
        log.warning("%s: everybody may read the names and hashes of the API keys; chmod o-r", path)
    if len(content) > MAX_FILE_BYTES:
        raise KeysError(f"{path}: more than {MAX_FILE_BYTES} bytes")
    lines = content.decode("utf-8", "replace").splitlines()
    return _entries((f"{path}, line {number}", line) for number, line in enumerate(lines, 1))


def read_text(text: str, where: str) -> list[Entry]:
    """Read entries with commas between them, as they come from the environment.

    Raises:
        KeysError: where one is none; the message names the place, as ``where``, and the entry's number.
    """
    return _entries((f"{where}, entry {number}", entry) for number, entry in enumerate(text.split(","), 1))


def join(*parts: Iterable[Entry]) -> list[Entry]:
    """Return all entries, each key once.

    Raises:
        KeysError: where a key has two names, so that nobody could tell who asks.
    """
    found: dict[bytes, Entry] = {}
    for entry in (entry for part in parts for entry in part):
        if found.setdefault(entry.digest, entry).name != entry.name:
            raise KeysError(f"{entry.name} and {found[entry.digest].name} have the same key")
    return list(found.values())


class Keys:
    """The keys that are accepted now.

    A name may stand for several keys, so that one can be replaced without a gap: add the new one, change the
    clients, take the old one away. A key under two names is refused.

    A file is looked at again when it changes, at most once a second, when somebody asks. A new file that
    cannot be used (broken, empty, gone) leaves the keys as they were and is logged: a slip of the hand does
    not lock everybody out, and never lets anybody in.

    Args:
        fixed: keys from the environment.
        path: file with further keys.
        clock: seconds that never go back.

    Raises:
        KeysError: where the file cannot be used.
    """

    def __init__(
        self,
        fixed: Iterable[Entry] = (),
        path: Path | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed = join(fixed)
        self._path = path
        self._watch = Watch([path] if path else [], clock=clock)
        self._entries = self._read()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Take the keys that the settings name.

        Raises:
            KeysError: where they cannot be used.
        """
        where, fixed = "WHYBOX_API_KEYS", list[Entry]()
        if settings.api_keys is not None:
            fixed = read_text(settings.api_keys.get_secret_value(), where)
            if not fixed:
                raise KeysError(f"{where}: {_NONE}")
        return cls(fixed, settings.api_keys_file)

    @property
    def required(self) -> bool:
        """Whether a request needs a key; as it was at the start, whatever becomes of the file."""
        return bool(self._fixed) or self._path is not None

    @property
    def names(self) -> list[str]:
        """The names of the keys, each once."""
        return sorted({entry.name for entry in self._entries})

    def identify(self, authorization: str | None) -> str:
        """Return the name of the key in an `Authorization` header; empty where keys are off.

        How long it takes depends on the number of keys, and not on what came.

        Raises:
            ContractError: ``unauthenticated``; it says nothing of what came.
        """
        if not self.required:
            return ""
        if self._watch.changed():
            self._reload()
        scheme, _, key = (authorization or "").strip().partition(" ")
        if not scheme:
            raise ContractError(
                "unauthenticated",
                "this address needs an API key",
                field="authorization",
                expected=_EXPECTED,
                got="nothing",
            )
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise ContractError(
                "unauthenticated",
                "the authorization cannot be read",
                field="authorization",
                expected=_EXPECTED,
            )
        found = ""
        if _KEY.fullmatch(key):
            digest = _digest(key)
            for entry in self._entries:
                if hmac.compare_digest(entry.digest, digest):
                    found = entry.name
        if not found:
            raise ContractError(
                "unauthenticated", "the API key is not known", field="authorization", expected=_EXPECTED
            )
        return found

    def _reload(self) -> None:
        try:
            self._entries = self._read()
        except KeysError as error:
            log.error("the API keys stay as they were: %s", error)
        else:
            log.info("API keys read again: %s", ", ".join(self.names))

    def _read(self) -> list[Entry]:
        if self._path is None:
            return self._fixed
        read = read_file(self._path)
        if not read:
            raise KeysError(f"{self._path}: {_NONE}")
        try:
            return join(self._fixed, read)
        except KeysError as error:
            raise KeysError(f"{self._path}: {error}") from error


def _entries(lines: Iterable[tuple[str, str]]) -> list[Entry]:
    """Read entries, each with the place where it stands."""
    entries = []
    for where, line in lines:
        text = line.partition("#")[0].strip()
        if not text:
            continue
        parts = _LINE.fullmatch(text)
        if parts is None or not _NAME.fullmatch(parts["name"]):
            raise KeysError(f"{where}: expected {_FORM}")
        entries.append(Entry(parts["name"], bytes.fromhex(parts["digest"])))
    return entries


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
