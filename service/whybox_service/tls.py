"""TLS for both transports, from one set of files that may be renewed under the running gateway."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import grpc

from whybox_service.settings import Settings
from whybox_service.watch import Watch

log = logging.getLogger(__name__)


class TlsError(ValueError):
    """Certificates that cannot be used; the message names the setting and the file."""


@dataclass(frozen=True)
class _Files:
    """Where the certificates lie."""

    certificate: Path
    key: Path
    client_ca: Path | None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.certificate, self.key, self.client_ca) if path is not None]


@dataclass(frozen=True)
class _Chain:
    """The same certificate in the form that each transport takes."""

    context: ssl.SSLContext
    configuration: grpc.ServerCertificateConfiguration


class Tls:
    """What both servers show to their clients, and demand of them.

    A renewed certificate (key, client CA) is taken up by the next connection that comes a second later;
    connections that stand go on. Files that cannot be used (one of a pair renewed, the other not yet) leave
    what was there and are logged.

    Raises:
        TlsError: where the files cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._files = _Files(certificate, key, client_ca)
        # gRPC asks in threads of its own.
        self._lock = threading.Lock()
        self._watch = Watch(self._files.paths)
        self._chain = _load(self._files)

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """Take the files that the settings name; None where TLS is off.

        Raises:
            TlsError: where they name half of it, or files that cannot be used.
        """
        certificate, key, client_ca = settings.tls_certificate, settings.tls_key, settings.tls_client_ca
        if certificate is not None and key is not None:
            return cls(certificate, key, client_ca)
        if certificate is not None or key is not None:
            raise TlsError("WHYBOX_TLS_CERTIFICATE and WHYBOX_TLS_KEY go together: set both, or neither")
        if client_ca is not None:
            raise TlsError("WHYBOX_TLS_CLIENT_CA needs WHYBOX_TLS_CERTIFICATE and WHYBOX_TLS_KEY")
        return None

    def context(self) -> ssl.SSLContext:
        """Return the context for REST; each handshake goes on with the newest certificate."""
        # A context that is in use cannot be changed safely: loading a chain into it drops the old key before
        # the new one has proved to fit. So one that is ready takes its place, handshake by handshake.
        context = _load(self._files).context

        def choose(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._current().context

        context.sni_callback = choose
        return context

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials for gRPC; each handshake asks for the newest certificate."""
        return grpc.dynamic_ssl_server_credentials(
            self._chain.configuration,
            lambda: self._current().configuration,
            require_client_authentication=self._files.client_ca is not None,
        )

    def _current(self) -> _Chain:
        with self._lock:
            if self._watch.changed():
                try:
                    self._chain = _load(self._files)
                except TlsError as error:
                    log.error("the TLS certificate stays as it was: %s", error)
                else:
                    log.info("TLS certificate read again")
            return self._chain


def _load(files: _Files) -> _Chain:
    """Read the files and prove that they fit.

    Raises:
        TlsError: where they do not.
    """
    before = _contents(files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(files.certificate, files.key, _no_password)
    except OSError as error:
        raise TlsError(_why(error, files)) from error
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except OSError as error:
            raise TlsError(f"WHYBOX_TLS_CLIENT_CA: {files.client_ca} has no certificates in PEM") from error
        context.verify_mode = ssl.CERT_REQUIRED
    # The context takes paths, gRPC takes bytes: both must be of the same moment.
    if before != _contents(files):
        raise TlsError(f"{files.certificate} and its companions changed while they were read")
    certificate, key, *client_ca = before
    return _Chain(
        context,
        grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca[0] if client_ca else None),
    )


def _contents(files: _Files) -> list[bytes]:
    names = ("WHYBOX_TLS_CERTIFICATE", "WHYBOX_TLS_KEY", "WHYBOX_TLS_CLIENT_CA")
    contents = []
    for name, path in zip(names, files.paths, strict=False):
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise TlsError(f"{name}: cannot read {path}: {error.strerror}") from error
    return contents


def _why(error: OSError, files: _Files) -> str:
    reason = getattr(error, "reason", None) or error.strerror or "not PEM"
    if reason == "KEY_VALUES_MISMATCH":
        return f"WHYBOX_TLS_KEY: {files.key} is not the key of the certificate in {files.certificate}"
    return (
        f"WHYBOX_TLS_CERTIFICATE, WHYBOX_TLS_KEY: {files.certificate} and {files.key} are no certificate and "
        f"private key in PEM ({reason})"
    )


def _no_password() -> str:
    """Keep OpenSSL from asking the terminal."""
    raise TlsError("WHYBOX_TLS_KEY: the private key is encrypted; give one that is not")
