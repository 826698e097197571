"""The probe that a container's health check runs, and that `whybox serve` looks with."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from access_parts import issue
from conftest import PATIENCE_SECONDS, Live
from whybox_service import addresses, probe

RED = b'{"ready": false, "reasons": {"street": "no worker is ready (UNLOADING)"}}'


class _Answers(BaseHTTPRequestHandler):
    status, body = 200, b"{}"

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def answering(status: int, body: bytes, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server whose readiness is as told; its URL."""
    handler = type("Handler", (_Answers,), {"status": status, "body": body})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"{'https' if context else 'http'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "whybox_service.probe", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def test_a_service_that_is_ready_by_its_settings_past_every_proxy(live: Live) -> None:
    nowhere = "http://127.0.0.1:9"
    done = run(
        WHYBOX_HOST="0.0.0.0",
        WHYBOX_PORT=live.rest.rpartition(":")[2],
        http_proxy=nowhere,
        https_proxy=nowhere,
        all_proxy=nowhere,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_one_that_is_not_ready_says_why() -> None:
    with answering(503, RED) as url:
        done = run(f"{url}/")
        assert probe.answers(url)
    assert (done.returncode, done.stderr) == (1, "street: no worker is ready (UNLOADING)\n")


@pytest.mark.parametrize(
    ("status", "body", "told"),
    [
        (503, b'{"detail": "busy"}', "busy"),
        (503, b"{}", "it answers 503"),
        (502, b"<html>", "its answer cannot be read"),
        (503, b"[]", "its answer cannot be read"),
    ],
)
def test_answers_of_others(status: int, body: bytes, told: str) -> None:
    with answering(status, body) as url:
        assert probe.unready(url) == {"gateway": told}


def test_nobody_there() -> None:
    with addresses.reserved_ports(1) as (port,):
        url = f"http://127.0.0.1:{port}"
        assert "refused" in probe.unready(url)["gateway"]
        assert not probe.answers(url)


def test_silence() -> None:
    with addresses.listen("127.0.0.1", 0) as deaf:
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        assert "timed out" in probe.unready(url, 0.2)["gateway"]
        assert not probe.answers(url, 0.2)


def test_settings_that_cannot_be_read() -> None:
    done = run(WHYBOX_PORT="eight thousand")
    assert done.returncode == 1
    assert done.stderr.startswith("settings: ")
    assert "eight thousand" not in done.stderr


class TestTls:
    """A service whose certificate is for others than this machine."""

    def test_any_certificate_will_do(self, tmp_path: Path) -> None:
        certificate, key = issue(trustme.CA(), tmp_path, "explain.example.org")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        with answering(200, b"{}", context) as url:
            settings = {"WHYBOX_TLS_CERTIFICATE": str(certificate), "WHYBOX_TLS_KEY": str(key)}
            done = run(WHYBOX_PORT=url.rpartition(":")[2], **settings)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_one_that_demands_a_certificate(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion
    ) -> None:
        authority, others = trustme.CA(), trustme.CA()
        certificate, key = issue(authority, tmp_path, "explain.example.org")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = context.maximum_version = version
        context.load_cert_chain(certificate, key)
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
        monkeypatch.setenv("WHYBOX_TLS_CLIENT_CA", "any")
        with answering(200, b"{}", context) as url:
            with pytest.raises(probe.HiddenError):
                probe.unready(url)
            assert probe.answers(url)
            monkeypatch.setenv("WHYBOX_TLS_CERTIFICATE", str(certificate))
            monkeypatch.setenv("WHYBOX_TLS_KEY", str(key))
            assert probe.unready(url) == {}
            (tmp_path / "others").mkdir()
            strange, strange_key = issue(others, tmp_path / "others", "explain.example.org")
            monkeypatch.setenv("WHYBOX_TLS_CERTIFICATE", str(strange))
            monkeypatch.setenv("WHYBOX_TLS_KEY", str(strange_key))
            with pytest.raises(probe.HiddenError):
                probe.unready(url)
