"""What a client shows of itself, and whom it trusts."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TypeAlias, TypeVar
from urllib.parse import urlsplit

#: The environment variable with the key of clients that are given none.
API_KEY = "WHYBOX_API_KEY"

_KEY = re.compile("[!-~]+")
_SECURE = ("https", "grpcs")

T = TypeVar("T")

FilePath: TypeAlias = str | PathLike[str]


@dataclass(frozen=True)
class Credentials:
    """An API key, and the certificates of TLS; the key is in no `repr`.

    Attributes:
        api_key: sent with every call; empty for none.
        ca: PEM file of the authorities that the service's certificate must come from; None: those that the
            system trusts.
        certificate: PEM files of the client's own certificate and its private key, for services that ask for
            one.
    """

    api_key: str = field(default="", repr=False)
    ca: Path | None = None
    certificate: tuple[Path, Path] | None = None

    @classmethod
    def of(
        cls,
        url: str,
        api_key: str | None = None,
        ca: FilePath | None = None,
        certificate: tuple[FilePath, FilePath] | None = None,
    ) -> Credentials:
        """Take a client's arguments; a key that is None comes from the environment.

        Raises:
            ValueError: for a key that cannot be one, without showing it, or certificates for a URL without
                TLS.
        """
        if api_key is None:
            api_key = os.environ.get(API_KEY, "")
        key = api_key.strip()
        if key and not _KEY.fullmatch(key):
            # Said here, because the errors of httpx and gRPC would show the key.
            raise ValueError("an API key is visible ASCII characters, with no space between them")
        if (ca is not None or certificate is not None) and urlsplit(url).scheme not in _SECURE:
            raise ValueError("certificates go with https:// and grpcs:// alone")
        pair = (Path(certificate[0]), Path(certificate[1])) if certificate else None
        return cls(key, Path(ca) if ca else None, pair)

    @property
    def headers(self) -> dict[str, str]:
        """What goes with every call: HTTP headers, or gRPC metadata."""
        return {"authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def context(self) -> ssl.SSLContext:
        """Return what TLS needs.

        Raises:
            ValueError: for a file that cannot be read, or is none; the message names it.
        """
        context = _using(self.ca, lambda: ssl.create_default_context(cafile=self.ca))
        if self.certificate is not None:
            certificate, key = self.certificate
            _using(f"{certificate}, {key}", lambda: context.load_cert_chain(certificate, key, _no_password))
        return context

    def authorities(self) -> bytes | None:
        """Return the certificates, PEM, that gRPC is to trust; None where only gRPC's own can be found."""
        if self.ca is not None:
            return self.ca.read_bytes()
        system = ssl.get_default_verify_paths()
        # Debian's OpenSSL knows a folder alone, in which all of them stand once more in one file.
        bundle = Path(system.cafile or Path(system.capath or "") / "ca-certificates.crt")
        return bundle.read_bytes() if bundle.is_file() else None


def _using(what: object, load: Callable[[], T]) -> T:
    try:
        return load()
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or "not PEM"
        raise ValueError(f"a certificate that cannot be used: {what}: {reason}") from error


def _no_password() -> str:
    """Keep OpenSSL from asking the terminal."""
    raise ValueError("the private key is encrypted; give one that is not")
