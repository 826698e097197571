"""Keys, certificates and where the gateway dares to listen, each on its own; live in test_access_live.py."""

from __future__ import annotations

import hmac
import itertools
import logging
import os
import re
import ssl
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner
from pydantic import SecretStr
from starlette.routing import Route

from access_parts import issue, write_keys
from whybox_client.cli import main
from whybox_client.transports import connect
from whybox_client.transports.credentials import Credentials
from whybox_proto.errors import ContractError, to_problem
from whybox_service import keys as keys_module
from whybox_service.access import OPEN_OPERATIONS, ExposedError, check_exposure, is_loopback, needs_key
from whybox_service.app import Gateway
from whybox_service.keys import Keys, KeysError, entry_of, join, new_key, read_file, read_text
from whybox_service.rest import openapi
from whybox_service.rest.routes import ADDRESSES
from whybox_service.settings import Settings
from whybox_service.tls import Tls, TlsError
from whybox_service.watch import Watch

OLD, NEW, OTHER = new_key(), new_key(), new_key()


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(keys: Keys, authorization: str | None) -> ContractError:
    with pytest.raises(ContractError) as caught:
        keys.identify(authorization)
    assert caught.value.type == "unauthenticated"
    return caught.value


class TestTheFile:
    def test_a_line_a_key(self, tmp_path: Path) -> None:
        old, new = entry_of("app", OLD), entry_of("app", NEW)
        path = write_keys(
            tmp_path / "keys", "# ours", old, "", f"  {new}  # since May", entry_of("a-1._", OTHER)
        )
        assert read_file(path) == [old, new, entry_of("a-1._", OTHER)]

    @pytest.mark.parametrize(
        "line",
        [
            OLD,
            f"app:{OLD}",
            f"app:md5:{'0' * 64}",
            f"app:sha256:{'0' * 63}",
            f"app:sha256:{'g' * 64}",
            f"App:sha256:{'0' * 64}",
            f":sha256:{'0' * 64}",
            f"-app:sha256:{'0' * 64}",
            f"{'a' * 65}:sha256:{'0' * 64}",
            f"app sha256 {'0' * 64}",
            "\N{SNOWMAN}",
        ],
    )
    def test_another_line_is_refused_by_its_number_and_not_shown(self, tmp_path: Path, line: str) -> None:
        path = write_keys(tmp_path / "keys", "# two", entry_of("fine", OTHER), line)
        with pytest.raises(
            KeysError, match=f"^{re.escape(str(path))}, line 3: expected NAME:sha256:HEX"
        ) as caught:
            read_file(path)
        assert line not in str(caught.value)

    def test_one_that_everybody_may_write_is_refused(self, tmp_path: Path) -> None:
        path = write_keys(tmp_path / "keys", entry_of("app", OLD))
        path.chmod(0o602)
        with pytest.raises(KeysError, match="everybody may write"):
            read_file(path)

    @pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o640, False), (0o644, True)])
    def test_one_that_everybody_may_read_is_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, mode: int, warns: bool
    ) -> None:
        path = write_keys(tmp_path / "keys", entry_of("app", OLD))
        path.chmod(mode)
        assert len(read_file(path)) == 1
        assert ("everybody may read" in caplog.text) == warns

    def test_one_that_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(KeysError, match="nowhere: No such file"):
            read_file(tmp_path / "nowhere")
        with pytest.raises(KeysError, match="not a regular file"):
            read_file(tmp_path)
        (tmp_path / "large").write_text("#" * (keys_module.MAX_FILE_BYTES + 1))
        with pytest.raises(KeysError, match="more than"):
            read_file(tmp_path / "large")

    def test_one_without_a_key_would_let_nobody_in(self, tmp_path: Path) -> None:
        with pytest.raises(KeysError, match="there is no key in it"):
            Keys(path=write_keys(tmp_path / "keys", "# nobody"))

    def test_a_key_has_one_name(self) -> None:
        with pytest.raises(KeysError, match=r"^b and a have the same key$"):
            join([entry_of("a", OLD)], [entry_of("b", OLD)])
        assert join([entry_of("a", OLD)], [entry_of("a", OLD)]) == [entry_of("a", OLD)]


class TestIdentify:
    @pytest.fixture
    def keys(self) -> Keys:
        return Keys([entry_of("app", OLD), entry_of("app", NEW), entry_of("other", OTHER)])

    @pytest.mark.parametrize(
        ("key", "name"), [(OLD, "app"), (NEW, "app"), (OTHER, "other")], ids=["old", "new", "other"]
    )
    def test_a_key_has_its_name(self, keys: Keys, key: str, name: str) -> None:
        for form in (f"Bearer {key}", f"bearer {key}", f"BEARER   {key} "):
            assert keys.identify(form) == name

    def test_without_keys_everybody_is_anonymous(self) -> None:
        keys = Keys()
        assert not keys.required
        assert keys.identify(None) == keys.identify("Bearer whatever") == ""

    @pytest.mark.parametrize(
        "authorization",
        [
            None,
            "",
            " ",
            "Bearer",
            "Bearer ",
            OLD,
            f"Basic {OLD}",
            f"Bearer {new_key()}",
            f"Bearer {OLD}x",
            f"Bearer {OLD[:-1]}",
            f"Bearer {OLD} {OLD}",
            f"Bearer {OLD.upper()}",
            f"Bearer {entry_of('app', OLD).digest.hex()}",
            f"Bearer {entry_of('app', OLD)}",
            "Bearer \N{SNOWMAN}" + OLD,
            "Bearer " + "x" * 100_000,
        ],
        ids=itertools.count(),
    )
    def test_what_is_no_key_is_refused_and_not_shown(self, keys: Keys, authorization: str | None) -> None:
        error = refused(keys, authorization)
        told = f"{error} {error!r} {error.__dict__} {to_problem(error)}"
        for secret in (OLD, NEW, OTHER, (authorization or "").partition(" ")[2].strip()):
            assert not secret or secret not in told
        assert "Authorization: Bearer KEY" in told
        assert len(told) < 1000

    @pytest.mark.parametrize("text", ["x", "secret", "a" * 31])
    def test_a_password_is_no_key_even_where_its_hash_stands_in_the_file(self, text: str) -> None:
        refused(Keys([entry_of("app", text)]), f"Bearer {text}")

    @pytest.mark.parametrize("key", [OLD, OTHER, new_key()], ids=["first", "last", "unknown"])
    def test_every_entry_is_compared_whatever_came(
        self, keys: Keys, monkeypatch: pytest.MonkeyPatch, key: str
    ) -> None:
        compared = []
        compare = hmac.compare_digest

        def count(a: bytes, b: bytes) -> bool:
            compared.append((len(a), len(b)))
            return compare(a, b)

        monkeypatch.setattr(hmac, "compare_digest", count)
        with suppress(ContractError):
            keys.identify(f"Bearer {key}")
        assert compared == [(32, 32)] * 3

    def test_keys_are_random(self) -> None:
        made = {new_key() for _ in range(1000)}
        assert len(made) == 1000
        assert all(re.fullmatch(r"whybox_[A-Za-z0-9_-]{43}", key) for key in made)


class TestReload:
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write_keys(tmp_path / "keys", entry_of("app", OLD))

    @pytest.fixture
    def keys(self, path: Path, clock: Clock) -> Keys:
        return Keys(path=path, clock=clock)

    def test_keys_come_and_go_with_the_file(self, keys: Keys, path: Path, clock: Clock) -> None:
        refused(keys, f"Bearer {NEW}")
        write_keys(path, entry_of("app", OLD), entry_of("app", NEW))
        clock.now += 1
        assert keys.identify(f"Bearer {OLD}") == keys.identify(f"Bearer {NEW}") == "app"
        write_keys(path, entry_of("app", NEW))
        clock.now += 1
        refused(keys, f"Bearer {OLD}")
        assert keys.identify(f"Bearer {NEW}") == "app"

    def test_a_file_in_its_place_is_seen_though_size_and_time_are_the_same(
        self, keys: Keys, path: Path, clock: Clock
    ) -> None:
        other = write_keys(path.with_name("other"), entry_of("app", NEW))
        times = path.stat()
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert (other.stat().st_size, other.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
        other.replace(path)
        clock.now += 1
        assert keys.identify(f"Bearer {NEW}") == "app"

    def test_a_link_that_leads_elsewhere_is_seen(self, tmp_path: Path, clock: Clock) -> None:
        """Kubernetes changes a mounted secret so."""
        for folder, key in (("1", OLD), ("2", NEW)):
            (tmp_path / folder).mkdir()
            write_keys(tmp_path / folder / "keys", entry_of("app", key))
        (tmp_path / "data").symlink_to("1")
        keys = Keys(path=tmp_path / "data" / "keys", clock=clock)
        (tmp_path / "next").symlink_to("2")
        (tmp_path / "next").replace(tmp_path / "data")
        clock.now += 1
        assert keys.identify(f"Bearer {NEW}") == "app"

    @pytest.mark.parametrize("how", ["broken", "empty", "gone", "writable", "two names"])
    def test_a_file_that_cannot_be_used_changes_nothing_and_is_logged_once(
        self, keys: Keys, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, how: str
    ) -> None:
        if how == "broken":
            write_keys(path, entry_of("app", NEW), OTHER)
        elif how == "empty":
            write_keys(path)
        elif how == "gone":
            path.unlink()
        elif how == "writable":
            write_keys(path, entry_of("app", NEW)).chmod(0o666)
        else:
            write_keys(path, entry_of("app", NEW), entry_of("other", NEW))
        for _ in range(3):
            clock.now += 1
            assert keys.identify(f"Bearer {OLD}") == "app"
            refused(keys, f"Bearer {NEW}")
            refused(keys, None)
        assert keys.required
        (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
        assert "stay as they were" in record.getMessage()
        assert str(path) in record.getMessage()
        assert not any(secret in caplog.text for secret in (OLD, NEW, OTHER))
        path.unlink(missing_ok=True)
        write_keys(path, entry_of("app", NEW))
        clock.now += 1
        assert keys.identify(f"Bearer {NEW}") == "app"

    def test_it_is_looked_at_once_a_second_at_most(
        self, keys: Keys, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks = []
        look = os.stat
        monkeypatch.setattr("whybox_service.watch.os.stat", lambda path: looks.append(path) or look(path))
        for _ in range(100):
            keys.identify(f"Bearer {OLD}")
        assert looks == []
        clock.now += 1
        for _ in range(100):
            keys.identify(f"Bearer {OLD}")
        assert looks == [path]

    def test_a_file_that_is_not_there_yet(self, tmp_path: Path, clock: Clock) -> None:
        watch = Watch([tmp_path / "a"], clock=clock)
        clock.now += 1
        assert not watch.changed()
        (tmp_path / "a").touch()
        clock.now += 1
        assert watch.changed()
        clock.now += 1
        assert not watch.changed()


class TestSettings:
    def test_both_places_count(self, tmp_path: Path) -> None:
        path = write_keys(tmp_path / "keys", entry_of("file", OLD))
        text = f"{entry_of('one', NEW)},{entry_of('two', OTHER)}"
        keys = Keys.from_settings(Settings(api_keys_file=path, api_keys=SecretStr(text)))
        assert keys.required
        assert keys.names == ["file", "one", "two"]
        assert [keys.identify(f"Bearer {key}") for key in (OLD, NEW, OTHER)] == ["file", "one", "two"]

    def test_an_empty_variable_is_one_that_is_not_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("API_KEYS", "API_KEYS_FILE", "TLS_CERTIFICATE", "TLS_KEY", "TLS_CLIENT_CA"):
            monkeypatch.setenv(f"WHYBOX_{name}", "")
        settings = Settings()
        assert not Keys.from_settings(settings).required
        assert Tls.from_settings(settings) is None

    @pytest.mark.parametrize("text", [" ", ",", " , "])
    def test_keys_that_are_none_do_not_open_the_door(self, text: str) -> None:
        with pytest.raises(KeysError, match="WHYBOX_API_KEYS: there is no key in it"):
            Keys.from_settings(Settings(api_keys=SecretStr(text)))

    def test_an_entry_that_is_none_is_named_and_not_shown(self) -> None:
        text = f"{entry_of('fine', OTHER)},app:{OLD}"
        with pytest.raises(KeysError, match=r"^WHYBOX_API_KEYS, entry 2: expected") as caught:
            read_text(text, "WHYBOX_API_KEYS")
        assert OLD not in str(caught.value)

    def test_no_repr_and_no_error_shows_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        entry = entry_of("app", OLD)
        monkeypatch.setenv("WHYBOX_API_KEYS", str(entry))
        settings = Settings()
        for shown in (repr(settings), str(settings), repr(settings.model_dump()), settings.model_dump_json()):
            assert entry.digest.hex() not in shown
        monkeypatch.setenv("WHYBOX_PORT", "no port")
        with pytest.raises(ValueError, match="port") as caught:
            Settings()
        assert entry.digest.hex() not in str(caught.value)
        assert "no port" not in str(caught.value)


class TestWhatIsOpen:
    def test_every_operation_of_the_contract_needs_a_key(self) -> None:
        settings = Settings()
        assert all(needs_key(address.operation, settings) for address in ADDRESSES)
        assert not OPEN_OPERATIONS & {address.operation for address in ADDRESSES}
        assert needs_key("unknown", settings)

    def test_the_description_of_the_api_says_the_same(self) -> None:
        described = openapi.document()
        (scheme,) = described["components"]["securitySchemes"].items()
        assert (scheme[1]["type"], scheme[1]["scheme"]) == ("http", "bearer")
        assert described["security"] == [{scheme[0]: []}, {}]
        for path, verbs in described["paths"].items():
            for operation in verbs.values():
                open_to_all = operation.get("security") == []
                assert open_to_all == (path in ("/healthz", "/readyz")), path
                assert "401" in operation["responses"]

    def test_metrics_are_open_where_it_is_said(self) -> None:
        assert needs_key("metrics", Settings())
        assert not needs_key("metrics", Settings(open_metrics=True))

    @pytest.mark.parametrize(
        ("host", "inside"),
        [
            ("127.0.0.1", True),
            ("127.8.9.10", True),
            ("::1", True),
            ("::ffff:127.0.0.1", True),
            ("localhost", True),
            ("0.0.0.0", False),
            ("::", False),
            ("", False),
            ("10.0.0.1", False),
            ("::ffff:10.0.0.1", False),
            ("no.such.host.invalid", False),
        ],
    )
    def test_loopback(self, host: str, inside: bool) -> None:
        assert is_loopback(host) == inside

    def test_beyond_loopback_there_are_keys_or_it_is_said(self, caplog: pytest.LogCaptureFixture) -> None:
        keys = Keys([entry_of("app", OLD)])
        check_exposure(Settings(), Keys())
        assert caplog.text == ""
        for host in ("0.0.0.0", "::", ""):
            with pytest.raises(ExposedError, match=r"whybox keys new NAME.*WHYBOX_ALLOW_ANONYMOUS=true"):
                check_exposure(Settings(host=host), Keys())
        check_exposure(Settings(host="0.0.0.0", allow_anonymous=True), Keys())
        assert "everybody who reaches it is let in" in caplog.text
        check_exposure(Settings(host="0.0.0.0"), keys)
        assert "without TLS" in caplog.text
        caplog.clear()
        check_exposure(Settings(host="0.0.0.0", tls_certificate=Path("x"), tls_key=Path("y")), keys)
        assert caplog.text == ""

    def test_no_page_of_another_origin_is_let_read(self) -> None:
        """There is no middleware, so no CORS header; and every route's verbs are those that it answers."""
        app = Gateway(Settings()).app
        assert app.user_middleware == []
        for route in app.routes:
            assert not isinstance(route, Route) or "OPTIONS" not in (route.methods or ())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class TestTls:
    def test_off(self) -> None:
        assert Tls.from_settings(Settings()) is None

    def test_old_versions_are_off(self, authority: trustme.CA, tmp_path: Path) -> None:
        context = Tls(*issue(authority, tmp_path)).context()
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert context.verify_mode == ssl.CERT_NONE

    def test_half_of_it(self, authority: trustme.CA, tmp_path: Path) -> None:
        certificate, key = issue(authority, tmp_path)
        for half in (Settings(tls_certificate=certificate), Settings(tls_key=key)):
            with pytest.raises(TlsError, match="go together"):
                Tls.from_settings(half)
        with pytest.raises(TlsError, match="WHYBOX_TLS_CLIENT_CA needs"):
            Tls.from_settings(Settings(tls_client_ca=certificate))

    def test_files_that_cannot_be_used_are_named(self, authority: trustme.CA, tmp_path: Path) -> None:
        certificate, key = issue(authority, tmp_path)
        nowhere = tmp_path / "nowhere"
        with pytest.raises(TlsError, match=r"WHYBOX_TLS_CERTIFICATE: cannot read .*nowhere: No such file"):
            Tls(nowhere, key)
        with pytest.raises(TlsError, match=r"WHYBOX_TLS_KEY: cannot read .*nowhere: No such file"):
            Tls(certificate, nowhere)
        with pytest.raises(TlsError, match=r"WHYBOX_TLS_CLIENT_CA: cannot read .*nowhere: No such file"):
            Tls(certificate, key, nowhere)
        (tmp_path / "other").mkdir()
        _, other = issue(authority, tmp_path / "other")
        with pytest.raises(TlsError, match=r"other/key\.pem is not the key of the certificate in"):
            Tls(certificate, other)
        nonsense = tmp_path / "nonsense"
        nonsense.write_text("not PEM")
        for files in ((nonsense, key), (certificate, nonsense)):
            with pytest.raises(TlsError, match="no certificate and private key in PEM"):
                Tls(*files)
        with pytest.raises(TlsError, match="nonsense has no certificates in PEM"):
            Tls(certificate, key, nonsense)

    def test_an_encrypted_key_asks_nobody(self, authority: trustme.CA, tmp_path: Path) -> None:
        from cryptography.hazmat.primitives import serialization

        certificate, key = issue(authority, tmp_path)
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        key.write_bytes(
            loaded.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"password"),
            )
        )
        with pytest.raises(TlsError, match="encrypted"):
            Tls(certificate, key)


class TestTheClient:
    def test_the_key_is_in_no_repr_and_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from whybox_client import AsyncClient, Client

        with Client("http://127.0.0.1:9", api_key=OLD) as client:
            for thing in (client, client._transport, Credentials(OLD), Credentials.of("http://a", OLD)):
                assert OLD not in repr(thing)
        assert OLD not in repr(AsyncClient("grpc://127.0.0.1:9", api_key=OLD))
        for wrong in (f"{OLD}\n{OLD}", f"{OLD} x", OLD + "\N{SNOWMAN}", OLD + "\x00"):
            for url in ("http://127.0.0.1:9", "grpc://127.0.0.1:9"):
                with pytest.raises(ValueError, match="visible ASCII") as caught:
                    Client(url, api_key=wrong)
                assert OLD not in str(caught.value)
        for url in (f"http://user:{OLD}@127.0.0.1:9", f"grpc://{OLD}@127.0.0.1:9"):
            with pytest.raises(ValueError, match="no user and no password") as caught:
                Client(url)
            assert OLD not in str(caught.value)
        monkeypatch.setenv("WHYBOX_API_KEY", f"{OLD} {NEW}")
        with pytest.raises(ValueError, match="visible ASCII") as caught:
            Client()
        assert OLD not in str(caught.value)

    def test_the_environment_has_a_key_for_those_that_are_given_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("WHYBOX_API_KEY", raising=False)
        assert Credentials.of("http://a").headers == {}
        monkeypatch.setenv("WHYBOX_API_KEY", f"{OLD}\n")  # as a file ends
        assert Credentials.of("http://a").headers == {"authorization": f"Bearer {OLD}"}
        assert Credentials.of("http://a", NEW).headers == {"authorization": f"Bearer {NEW}"}
        assert Credentials.of("http://a", "").headers == {}

    @pytest.mark.parametrize("scheme", ["https", "grpcs"])
    def test_certificates_that_cannot_be_used_are_named(
        self, scheme: str, authority: trustme.CA, tmp_path: Path
    ) -> None:
        url = f"{scheme}://127.0.0.1:9"
        nonsense, nowhere = tmp_path / "nonsense", tmp_path / "nowhere"
        nonsense.write_text("not PEM")
        for ca in (nonsense, nowhere):
            with pytest.raises(ValueError, match=f"{ca.name}: "):
                connect(url, Credentials(ca=ca))
        certificate, key = issue(authority, tmp_path)
        with pytest.raises(ValueError, match="nowhere: No such file"):
            connect(url, Credentials(certificate=(certificate, nowhere)))
        connect(url, Credentials(ca=certificate, certificate=(certificate, key))).close()

    @pytest.mark.parametrize("scheme", ["http", "grpc"])
    def test_certificates_without_tls_are_a_mistake(self, scheme: str) -> None:
        with pytest.raises(ValueError, match="certificates go with https:// and grpcs://"):
            Credentials.of(f"{scheme}://127.0.0.1:9", ca="ca.pem")


class TestTheCommandLine:
    @staticmethod
    def run(*arguments: object, ok: bool = True) -> tuple[str, str]:
        result = CliRunner().invoke(main, ["keys", *map(str, arguments)])
        assert (result.exit_code == 0) == ok, result.output
        return result.stdout, result.stderr

    def test_a_new_key_is_printed_once_and_its_hash_is_in_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        key, told = self.run("new", "app", "--file", path)
        assert key.count("\n") == 1
        key = key.strip()
        assert key not in told
        assert key not in path.read_text()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert Keys(path=path).identify(f"Bearer {key}") == "app"

    def test_a_second_key_of_a_name_and_the_first_are_both_good(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        made = [self.run("new", name, "--file", path) for name in ("app", "other", "app")]
        assert "2 keys now" not in made[1][1]
        assert "app has 2 keys now" in made[2][1]
        names = [Keys(path=path).identify(f"Bearer {key}") for key, _ in made]
        assert names == ["app", "other", "app"]
        assert self.run("list", "--file", path)[0].split() == ["app", "other"]

    def test_without_a_file_the_line_is_printed(self) -> None:
        key, told = self.run("new", "app")
        (entry,) = read_text(told.rpartition(" ")[2].strip(), "here")
        assert entry == entry_of("app", key.strip())

    def test_a_file_that_is_there_keeps_its_mode_and_its_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        path.write_text(f"# ours\n{entry_of('old', OLD)}")  # no newline at its end
        path.chmod(0o640)
        inode = path.stat().st_ino
        self.run("new", "app", "--file", path)
        assert path.read_text().startswith(f"# ours\n{entry_of('old', OLD)}\napp:sha256:")
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_ino) == (0o640, inode)

    @pytest.mark.parametrize("arguments", [("new", "App"), ("new", ""), ("new", "a b"), ("new", "a" * 65)])
    def test_a_name_that_cannot_be(self, arguments: tuple[str, ...], tmp_path: Path) -> None:
        printed, told = self.run(*arguments, "--file", tmp_path / "keys", ok=False)
        assert printed == ""
        assert "a key's name has" in told
        assert not (tmp_path / "keys").exists()

    def test_a_file_that_is_broken_stays_as_it_is_and_no_key_is_printed(self, tmp_path: Path) -> None:
        path = write_keys(tmp_path / "keys", f"app:{OLD}")
        before = path.read_bytes()
        for arguments in (("new", "app", "--file", path), ("list", "--file", path)):
            printed, told = self.run(*arguments, ok=False)
            assert printed == ""
            assert "line 1" in told
            assert OLD not in told
        assert path.read_bytes() == before

    def test_several_at_once_lose_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        command = [sys.executable, "-m", "whybox_client.cli", "keys", "new"]

        def make(number: int) -> str:
            done = subprocess.run(
                [*command, f"app-{number}", "--file", path], capture_output=True, text=True, check=True
            )
            return done.stdout.strip()

        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(make, range(8)))
        keys = Keys(path=path)
        assert [keys.identify(f"Bearer {key}") for key in made] == [f"app-{number}" for number in range(8)]

    def test_the_documentation_s_commands_work(self, tmp_path: Path) -> None:
        page = (Path(__file__).parent.parent / "docs" / "security.md").read_text()
        (block,) = re.findall(r"```sh\n(whybox keys .*?)```", page, re.DOTALL)
        done = subprocess.run(
            ["bash", "-euc", block],
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "street-app\n"
        key = (tmp_path / "street-app.key").read_text().strip()
        assert Keys(path=tmp_path / "api-keys").identify(f"Bearer {key}") == "street-app"

    def test_it_needs_the_light_client_alone(self) -> None:
        code = (
            "import sys; from whybox_client.cli import main; import whybox_service.keys; "
            "print([m for m in ('pydantic', 'fastapi', 'grpc', 'torch') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_a_key_is_no_option(self) -> None:
        """Others on the machine see command lines."""
        from click import Group

        def options(command: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
            found = [(*path, option) for p in getattr(command, "params", ()) for option in p.opts]
            if isinstance(command, Group):
                for name, child in command.commands.items():
                    found += options(child, (*path, name))
            return found

        every = options(main)
        assert ("models", "--ca") in every
        assert not [option for option in every if "api-key" in option[-1] or "token" in option[-1]]

    def test_the_certificates_options(self, tmp_path: Path, authority: trustme.CA) -> None:
        certificate, key = issue(authority, tmp_path)

        def run(*arguments: object) -> str:
            return CliRunner().invoke(main, ["models", *map(str, arguments)]).stderr

        assert "go together" in run("--certificate", certificate)
        assert "go together" in run("--certificate-key", key)
        assert "https:// and grpcs:// alone" in run("--url", "http://127.0.0.1:9", "--ca", certificate)
