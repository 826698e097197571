"""A live gateway with keys and TLS: who gets in, by REST, gRPC, SDK and curl; and what nobody gets to see."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
import trustme

from access_parts import issue, write_keys
from conftest import PATIENCE_SECONDS, Live, serving
from gateway_calls import SERVICE, Outcome, grpc_outcome, rest_outcome
from test_gateway_backend import NAME, pack
from whybox_client import AsyncClient, Client, errors
from whybox_proto.v1 import explainer_pb2
from whybox_service.keys import entry_of, new_key
from whybox_service.rest.routes import ADDRESSES

APP, OPS, STRANGER = new_key(), new_key(), new_key()
# Until a change of a file is seen for sure.
SEEN_SECONDS = 1.2


@dataclass(frozen=True)
class Guarded:
    """A gateway with keys and TLS, and no TorchServe behind it.

    Attributes:
        rest: URL of REST.
        target: host and port of gRPC.
        ca: the authority of its certificate.
        folder: where its files are: `keys`, `certificate.pem`, `key.pem`, `ca.pem`, and its `log`.
        process: the gateway.
    """

    rest: str
    target: str
    ca: trustme.CA
    folder: Path
    process: psutil.Process

    @property
    def trust(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @property
    def ports(self) -> dict[str, int]:
        """The ports of both transports."""
        return {
            name: int(address.rpartition(":")[2])
            for name, address in (("rest", self.rest), ("grpc", self.target))
        }

    def http(self, certificate: tuple[Path, Path] | None = None) -> httpx.Client:
        context = ssl.create_default_context(cafile=self.trust)
        if certificate is not None:
            context.load_cert_chain(*certificate)
        return httpx.Client(base_url=self.rest, verify=context, timeout=60)

    def channel(self) -> grpc.Channel:
        return grpc.secure_channel(self.target, grpc.ssl_channel_credentials(self.trust.read_bytes()))


@contextmanager
def gateway(folder: Path, ca: trustme.CA, **settings: object) -> Iterator[Guarded]:
    """Run a gateway with TLS while the block lasts."""
    certificate, key = issue(ca, folder)
    ca.cert_pem.write_to_path(folder / "ca.pem")
    address_file = folder / "addresses.json"
    nobody = "http://127.0.0.1:9"
    settings = {
        "PORT": 0,
        "GRPC_PORT": 0,
        "ADDRESS_FILE": address_file,
        "INFERENCE_URL": nobody,
        "MANAGEMENT_URL": nobody,
        "LOG_LEVEL": "debug",
        "TLS_CERTIFICATE": certificate,
        "TLS_KEY": key,
        **settings,
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "whybox_service.app"],
            env={**os.environ, **{f"WHYBOX_{name}": str(value) for name, value in settings.items()}},
            stderr=log,
        )
    try:
        patience = time.monotonic() + PATIENCE_SECONDS
        while not address_file.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < patience
            time.sleep(0.05)
        told = json.loads(address_file.read_text())
        assert told["tls"] is True
        yield Guarded(told["rest"], told["grpc"], ca, folder, psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / "log").read_text()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def guarded(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    file = write_keys(folder / "keys", entry_of("app", APP))
    with gateway(folder, authority, API_KEYS_FILE=file, API_KEYS=entry_of("ops", OPS)) as running:
        yield running


@pytest.fixture(scope="module")
def http(guarded: Guarded) -> Iterator[httpx.Client]:
    with guarded.http() as client:
        yield client


@pytest.fixture(scope="module")
def channel(guarded: Guarded) -> Iterator[grpc.Channel]:
    with guarded.channel() as channel:
        yield channel


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def over_rest(http: httpx.Client, headers: dict[str, str]) -> Outcome:
    return rest_outcome(http.get("/v1/models/any", headers=headers), "GetModel")


def over_grpc(channel: grpc.Channel, headers: dict[str, str], rpc: str = "GetModel") -> Outcome:
    method = SERVICE.methods_by_name[rpc]
    path = f"/{SERVICE.full_name}/{rpc}"
    body = explainer_pb2.GetModelRequest(model="any").SerializeToString() if rpc == "GetModel" else b""
    ask = channel.unary_stream(path) if method.server_streaming else channel.unary_unary(path)
    with pytest.raises(grpc.RpcError) as caught:
        next(iter(ask(body, timeout=60, metadata=tuple(headers.items()))))
    return grpc_outcome(caught.value)


def in_rest(http: httpx.Client, key: str) -> bool:
    """Whether a key is let in: there is no TorchServe, so what is let in finds no model."""
    type = over_rest(http, bearer(key)).error["type"]
    assert type in ("unauthenticated", "backend_unavailable")
    return type == "backend_unavailable"


def in_grpc(channel: grpc.Channel, key: str) -> bool:
    type = over_grpc(channel, bearer(key)).error["type"]
    assert type in ("unauthenticated", "backend_unavailable")
    return type == "backend_unavailable"


class TestWhoGetsIn:
    @pytest.mark.parametrize(
        "path", ["/", "/playground/app.js", "/healthz", "/readyz", "/openapi.json", "/docs"]
    )
    def test_some_addresses_are_open(self, http: httpx.Client, path: str) -> None:
        assert http.get(path).status_code in (200, 503)
        assert http.get(path, headers=bearer(STRANGER)).status_code in (200, 503)

    @pytest.mark.parametrize(
        ("verb", "path"),
        [
            *((address.verb, re.sub(r"{\w+}", "any", address.path)) for address in ADDRESSES),
            ("GET", "/metrics"),
            ("GET", "/nothing/here"),
            ("PATCH", "/v1/models"),
            ("OPTIONS", "/v1/models"),
        ],
    )
    def test_all_others_need_a_key(self, http: httpx.Client, verb: str, path: str) -> None:
        for headers in ({}, bearer(STRANGER)):
            response = http.request(verb, path, headers=headers)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"].startswith("Bearer")
            outcome = rest_outcome(response)
            assert outcome.error["type"] == "unauthenticated"
            assert outcome.error["expected"] == "Authorization: Bearer KEY"
            assert STRANGER not in f"{response.text} {response.headers}"
            assert not [name for name in response.headers if name.lower().startswith("access-control-")]
        assert http.request(verb, path, headers=bearer(APP)).status_code != 401

    def test_an_unknown_key_is_told_before_its_body_is_read(self, guarded: Guarded) -> None:
        """Nobody without a key has the gateway keep 64 MiB of theirs."""
        context = ssl.create_default_context(cafile=guarded.trust)
        address = ("127.0.0.1", guarded.ports["rest"])
        with (
            socket.create_connection(address, 60) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(
                b"POST /v1/models/any:detect HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
                b"Content-Length: 60000000\r\n\r\nbegun"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 401 ")

    @pytest.mark.parametrize("rpc", [method.name for method in SERVICE.methods])
    def test_every_rpc_needs_a_key(self, channel: grpc.Channel, rpc: str) -> None:
        for headers in ({}, bearer(STRANGER)):
            outcome = over_grpc(channel, headers, rpc)
            assert outcome.error["type"] == "unauthenticated"
            assert STRANGER not in str(outcome)
        assert over_grpc(channel, bearer(APP), rpc).error["type"] != "unauthenticated"

    def test_an_unknown_key_is_told_before_the_message_is_read(self, channel: grpc.Channel) -> None:
        """The message never comes; whoever waited for it would answer DEADLINE_EXCEEDED."""
        refused = threading.Event()

        def nothing() -> Iterator[bytes]:
            refused.wait(PATIENCE_SECONDS)
            yield from ()

        for headers in ({}, bearer(STRANGER)):
            method = channel.stream_unary(f"/{SERVICE.full_name}/Detect")
            try:
                with pytest.raises(grpc.RpcError) as caught:
                    method(nothing(), timeout=60, metadata=tuple(headers.items()))
                assert grpc_outcome(caught.value).error["type"] == "unauthenticated"
            finally:
                refused.set()

    def test_health_and_reflection_are_open(self, channel: grpc.Channel) -> None:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"", timeout=60) == b"\x08\x02"  # there is no TorchServe
        reflect = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        (services,) = reflect(iter([b"\x3a\x00"]), timeout=60)  # list_services: ""
        assert SERVICE.full_name.encode() in services

    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            "Bearer",
            APP,
            f"Basic {APP}",
            f"Bearer {STRANGER}",
            f"Bearer {APP}x",
            f"Bearer {APP} {APP}",
        ],
        ids=range(8),
    )
    def test_both_transports_refuse_alike(
        self, http: httpx.Client, channel: grpc.Channel, authorization: str | None
    ) -> None:
        headers = {} if authorization is None else {"authorization": authorization}
        rest, rpc = over_rest(http, headers), over_grpc(channel, headers)
        assert rest == rpc
        assert rest.error["type"] == "unauthenticated"
        assert APP not in str(rest)

    def test_both_transports_take_the_keys_of_file_and_environment(
        self, http: httpx.Client, channel: grpc.Channel
    ) -> None:
        for key in (APP, OPS):
            assert in_rest(http, key)
            assert in_grpc(channel, key)
        assert over_rest(http, {"AUTHORIZATION": f"bearer {APP}"}).error["type"] == "backend_unavailable"


class TestTheSdk:
    @pytest.fixture(params=["rest", "grpc"])
    def url(self, request: pytest.FixtureRequest, guarded: Guarded) -> str:
        return guarded.rest if request.param == "rest" else f"grpcs://{guarded.target}"

    @pytest.fixture(autouse=True)
    def _no_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("WHYBOX_API_KEY", raising=False)

    def test_a_key_gets_in(self, url: str, guarded: Guarded) -> None:
        with (
            Client(url, api_key=APP, ca=guarded.trust, retries=0) as client,
            pytest.raises(errors.UnavailableError),
        ):
            client.model("any")

    def test_a_key_of_the_environment_gets_in(
        self, url: str, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WHYBOX_API_KEY", APP)
        with Client(url, ca=guarded.trust, retries=0) as client, pytest.raises(errors.UnavailableError):
            client.model("any")

    @pytest.mark.parametrize("key", [None, STRANGER], ids=["none", "stranger"])
    def test_no_key_and_an_unknown_one_do_not(self, url: str, guarded: Guarded, key: str | None) -> None:
        with Client(url, api_key=key, ca=guarded.trust) as client:
            with pytest.raises(errors.UnauthenticatedError) as caught:
                client.model("any")
            assert not client.ready()
        assert caught.value.request_id
        assert STRANGER not in f"{caught.value} {caught.value!r} {caught.value.__dict__} {client!r}"

    def test_the_async_client(self, url: str, guarded: Guarded) -> None:
        async def ask() -> None:
            async with AsyncClient(url, api_key=APP, ca=guarded.trust, retries=0) as client:
                with pytest.raises(errors.UnavailableError):
                    await client.model("any")
            async with AsyncClient(url, api_key=STRANGER, ca=guarded.trust) as client:
                with pytest.raises(errors.UnauthenticatedError):
                    await client.model("any")

        asyncio.run(ask())

    def test_a_service_that_cannot_be_trusted_gets_no_key(self, url: str, tmp_path: Path) -> None:
        other = tmp_path / "other.pem"
        trustme.CA().cert_pem.write_to_path(other)
        for ca in (other, None):
            with (
                Client(url, api_key=STRANGER, ca=ca, retries=0, timeout=20) as client,
                pytest.raises(errors.ConnectionFailedError) as caught,
            ):
                client.model("any")
            assert STRANGER not in f"{caught.value} {caught.value!r}"

    def test_the_system_s_authorities(
        self, url: str, guarded: Guarded, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(guarded.trust))
        with Client(url, api_key=APP, retries=0) as client, pytest.raises(errors.UnavailableError):
            client.model("any")

    def test_the_command_line(self, url: str, guarded: Guarded) -> None:
        command = [sys.executable, "-m", "whybox_client.cli", "models", "--url", url, "--ca", guarded.trust]
        for key, says in (
            (APP, "TorchServe cannot be reached"),
            (STRANGER, "is not known"),
            ("", "needs an API key"),
        ):
            done = subprocess.run(
                command,
                env={**os.environ, "WHYBOX_API_KEY": key},
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert done.returncode in (1, 3)
            assert says in done.stderr
            assert not key or key not in done.stdout + done.stderr

    @pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
    def test_curl(self, guarded: Guarded, tmp_path: Path) -> None:
        header = tmp_path / "header"  # not in the command line, as docs/security.md has it
        command = ["curl", "-s", "-w", "%{http_code}", "-o", os.devnull, "--cacert", guarded.trust]
        for key, code in ((APP, "503"), (STRANGER, "401")):
            header.write_text(f"Authorization: Bearer {key}\n")
            done = subprocess.run(
                [*command, "-H", f"@{header}", f"{guarded.rest}/v1/models/any"],
                capture_output=True,
                text=True,
            )
            assert done.stdout == code


class TestRotation:
    def test_keys_come_and_go_under_load_of_neither(
        self, guarded: Guarded, http: httpx.Client, channel: grpc.Channel
    ) -> None:
        file = guarded.folder / "keys"
        new = new_key()
        write_keys(file, entry_of("app", APP), entry_of("app", new))
        time.sleep(SEEN_SECONDS)
        for key in (APP, new, OPS):
            assert in_rest(http, key)
            assert in_grpc(channel, key)
        write_keys(file, entry_of("app", new))
        time.sleep(SEEN_SECONDS)
        assert [in_rest(http, key) for key in (APP, new, OPS)] == [False, True, True]
        assert [in_grpc(channel, key) for key in (APP, new, OPS)] == [False, True, True]
        write_keys(file, f"app:{APP}")
        time.sleep(SEEN_SECONDS)
        assert [in_rest(http, key) for key in (APP, new, OPS)] == [False, True, True]
        assert re.search(
            r"ERROR whybox_service.keys: the API keys stay as they were: .*keys, line 1", guarded.log
        )
        write_keys(file, entry_of("app", APP))
        time.sleep(SEEN_SECONDS)
        assert [in_grpc(channel, key) for key in (APP, new, OPS)] == [True, False, True]

    def test_a_renewed_certificate_is_shown_and_half_of_one_is_not(self, guarded: Guarded) -> None:
        """Connections that stand go on; new ones get the new certificate, over both transports."""

        def shown() -> set[str]:
            return {
                ssl.get_server_certificate(("127.0.0.1", port), timeout=60) for port in guarded.ports.values()
            }

        certificate, key = guarded.folder / "certificate.pem", guarded.folder / "key.pem"
        (old,) = shown()
        assert certificate.read_text().startswith(old)
        (guarded.folder / "next").mkdir()
        new_certificate, new_key_file = issue(guarded.ca, guarded.folder / "next")
        with guarded.http() as standing:
            assert standing.get("/healthz").status_code == 200
            new_certificate.replace(certificate)
            time.sleep(SEEN_SECONDS)
            assert shown() == {old}
            assert "is not the key of the certificate" in guarded.log
            new_key_file.replace(key)
            time.sleep(SEEN_SECONDS)
            (new,) = shown()
            assert new != old
            assert certificate.read_text().startswith(new)
            assert standing.get("/healthz").status_code == 200
        with guarded.http() as http, guarded.channel() as channel:
            assert in_rest(http, APP)
            assert in_grpc(channel, APP)


def test_a_client_without_tls_gets_nothing(guarded: Guarded) -> None:
    with pytest.raises(httpx.TransportError):
        httpx.get(guarded.rest.replace("https:", "http:") + "/healthz")
    with grpc.insecure_channel(guarded.target) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_clients_show_a_certificate_where_it_is_asked_for(authority: trustme.CA, tmp_path: Path) -> None:
    clients = trustme.CA()
    (tmp_path / "client").mkdir()
    own = issue(clients, tmp_path / "client", "client@example.org")
    (tmp_path / "stranger").mkdir()
    strange = issue(trustme.CA(), tmp_path / "stranger", "client@example.org")
    client_ca = tmp_path / "clients.pem"
    clients.cert_pem.write_to_path(client_ca)
    keys = entry_of("app", APP)
    with gateway(tmp_path, authority, TLS_CLIENT_CA=client_ca, API_KEYS=keys, OPEN_METRICS=True) as mutual:
        with mutual.http(own) as http:
            assert http.get("/metrics").status_code == 200
            assert http.get("/v1/models").status_code == 401
        for url in (mutual.rest, f"grpcs://{mutual.target}"):
            with (
                Client(url, api_key=APP, ca=mutual.trust, certificate=own, retries=0) as client,
                pytest.raises(errors.UnavailableError),
            ):
                client.model("any")
            for certificate in (None, strange):
                with (
                    Client(
                        url, api_key=APP, ca=mutual.trust, certificate=certificate, retries=0, timeout=20
                    ) as client,
                    pytest.raises(errors.ConnectionFailedError),
                ):
                    client.model("any")
        # Another authority takes the place of the first: its clients get in, those of the first no more.
        successor = trustme.CA()
        (tmp_path / "next").mkdir()
        newcomer = issue(successor, tmp_path / "next", "client@example.org")
        successor.cert_pem.write_to_path(client_ca)
        time.sleep(SEEN_SECONDS)
        for url in (mutual.rest, f"grpcs://{mutual.target}"):
            with (
                Client(url, api_key=APP, ca=mutual.trust, certificate=newcomer, retries=0) as client,
                pytest.raises(errors.UnavailableError),
            ):
                client.model("any")
            with (
                Client(url, api_key=APP, ca=mutual.trust, certificate=own, retries=0, timeout=20) as client,
                pytest.raises(errors.ConnectionFailedError),
            ):
                client.model("any")


def test_nothing_secret_is_seen_anywhere(guarded: Guarded, http: httpx.Client, channel: grpc.Channel) -> None:
    """After all of the above, with the log at its most talkative; names are seen, keys and hashes are not."""
    lost = new_key()
    for headers in (bearer(APP), bearer(STRANGER), bearer(lost), {"authorization": lost}):
        over_rest(http, headers)
        over_grpc(channel, headers)
        http.post("/v1/models/any:detect", headers={**headers, "Content-Type": "image/jpeg"}, content=b"x")
    with Client(guarded.rest, api_key=APP, ca=guarded.trust, retries=0) as client:
        client.ready()
    metrics = http.get("/metrics", headers=bearer(OPS)).text
    command = " ".join(guarded.process.cmdline())
    log = guarded.log
    secrets = [APP, OPS, STRANGER, lost, *(entry_of("a", key).digest.hex() for key in (APP, OPS))]
    secrets.append((guarded.folder / "key.pem").read_text().splitlines()[1])
    for place, text in (("log", log), ("metrics", metrics), ("command", command)):
        for number, secret in enumerate(secrets):
            assert secret not in text, f"secret {number} in the {place}"
            assert secret[:20] not in text, f"the beginning of secret {number} in the {place}"
    assert re.search(r"key=app\b", log)
    assert re.search(r'key="app"', metrics)
    assert re.search(r'code="unauthenticated"', metrics)
    assert "key=" + STRANGER[:6] not in log


REFUSALS: list[tuple[dict[str, str], str]] = [
    ({"HOST": "0.0.0.0"}, "0.0.0.0 is not loopback, and there are no API keys.*WHYBOX_ALLOW_ANONYMOUS=true"),
    ({"HOST": "::"}, ":: is not loopback"),
    ({"API_KEYS": APP}, "WHYBOX_API_KEYS, entry 1: expected NAME:sha256:HEX"),
    ({"API_KEYS_FILE": "/nowhere/keys"}, "/nowhere/keys: No such file"),
    ({"TLS_CERTIFICATE": "/nowhere/c"}, "WHYBOX_TLS_CERTIFICATE and WHYBOX_TLS_KEY go together"),
    (
        {"TLS_CERTIFICATE": "/nowhere/c", "TLS_KEY": "/nowhere/k"},
        "WHYBOX_TLS_CERTIFICATE: cannot read /nowhere/c",
    ),
    ({"PORT": "no port"}, "WHYBOX_PORT: Input should be a valid integer"),
    ({"ALLOW_ANONYMOUS": APP}, "WHYBOX_ALLOW_ANONYMOUS: Input should be a valid boolean"),
]


@pytest.mark.parametrize(("settings", "says"), REFUSALS, ids=["+".join(settings) for settings, _ in REFUSALS])
def test_what_cannot_be_is_refused_at_the_start(settings: dict[str, str], says: str) -> None:
    """In one line, with no traceback, and with no secret in it."""
    env = {"WHYBOX_PORT": "0", "WHYBOX_GRPC_PORT": "0", **{f"WHYBOX_{k}": v for k, v in settings.items()}}
    done = subprocess.run(
        [sys.executable, "-m", "whybox_service.app"],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 1
    assert re.search(says, done.stderr)
    assert "Traceback" not in done.stderr
    assert APP not in done.stderr


@pytest.fixture(scope="module")
def whole(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Path]]:
    store, scratch = tmp_path_factory.mktemp("access_store"), tmp_path_factory.mktemp("access")
    pack(NAME, Path(__file__).with_name("faulty_worker.py"), store)
    certificate, key = issue(authority, scratch)
    authority.cert_pem.write_to_path(scratch / "ca.pem")
    env = {
        "WHYBOX_API_KEYS_FILE": str(write_keys(scratch / "keys", entry_of("app", APP))),
        "WHYBOX_API_KEYS": str(entry_of("ops", OPS)),
        "WHYBOX_API_KEY": STRANGER,
        "WHYBOX_TLS_CERTIFICATE": str(certificate),
        "WHYBOX_TLS_KEY": str(key),
    }
    with serving(store, scratch, env=env) as live:
        yield live, scratch


class TestTheWholeService:
    """`whybox serve` with keys, TLS and a TorchServe behind."""

    def test_it_answers_those_with_a_key(self, whole: tuple[Live, Path]) -> None:
        live, scratch = whole
        assert live.rest.startswith("https://")
        assert live.grpc.startswith("grpcs://")
        for url in (live.rest, live.grpc):
            with Client(url, api_key=APP, ca=scratch / "ca.pem") as client:
                assert client.ready()
                assert client.detect(NAME, b"well").warnings
            with (
                Client(url, api_key=STRANGER, ca=scratch / "ca.pem") as client,
                pytest.raises(errors.UnauthenticatedError),
            ):
                client.detect(NAME, b"well")

    def test_every_port_of_torchserve_is_on_loopback(self, whole: tuple[Live, Path]) -> None:
        live, _ = whole
        java = listening(live.process, lambda process: process.name() == "java")
        assert {int(live.torchserve[name].split(":")[2].split("/")[0]) for name in live.torchserve} <= {
            port for _, port in java
        }
        assert len(java) == 5, "inference, management, metrics, and two of gRPC"
        everything = listening(live.process, lambda _: True)
        ours = {int(live.rest.rpartition(":")[2]), int(live.target.rpartition(":")[2])}
        assert {port for _, port in everything} == ours | {port for _, port in java}
        assert {host for host, _ in everything} <= {"127.0.0.1", "::ffff:127.0.0.1"}

    def test_models_are_not_registered_from_outside(self, whole: tuple[Live, Path]) -> None:
        live, _ = whole
        for verb, path in (
            ("POST", "/models?url=http://127.0.0.1:9/x.mar"),
            ("POST", f"/models?url={NAME}.mar&model_name=other"),
            ("PUT", f"/models/{NAME}?min_worker=3"),
            ("DELETE", f"/models/{NAME}"),
        ):
            response = httpx.request(verb, live.torchserve["management"] + path, timeout=60)
            served = httpx.get(live.torchserve["management"] + "/models", timeout=60).json()["models"]
            assert [model["modelName"] for model in served] == [NAME], response.text

    def test_no_process_shows_a_key_and_no_worker_knows_one(self, whole: tuple[Live, Path]) -> None:
        live, scratch = whole
        secrets = [APP, OPS, STRANGER, *(entry_of("a", key).digest.hex() for key in (APP, OPS))]
        for process in [live.process, *live.process.children(recursive=True)]:
            command = " ".join(process.cmdline())
            assert not any(secret in command for secret in secrets)
            if process.name() == "java" or "model_service_worker" in command:
                known = process.environ()
                assert not {"WHYBOX_API_KEYS", "WHYBOX_API_KEY"} & set(known)
                assert not any(secret in value for value in known.values() for secret in secrets)
        seen = (scratch / "serve.log").read_text() + (scratch / "ready.json").read_text()
        seen += "".join(path.read_text(errors="replace") for path in live.logs.glob("*.log"))
        assert not any(secret in seen for secret in secrets)


def listening(root: psutil.Process, wanted: Callable[[psutil.Process], bool]) -> set[tuple[str, int]]:
    """Return where the processes of a tree listen for TCP, by host and port."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in [root, *root.children(recursive=True)]
        if wanted(process)
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
