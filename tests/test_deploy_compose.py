"""compose.yaml is what the compose specification takes, and speaks of what whybox really has."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

import dockerfile
from whybox_service.settings import Settings

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("gateway", "gateway-2", "torchserve")
REPLICAS = ("gateway", "gateway-2")
FILE = dockerfile.read(ROOT / "Dockerfile")


def interpolated(text: str) -> str:
    """The file as compose reads it with no variable set: each `${NAME:-default}` is its default."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


class TestTheSpecification:
    """The file against the types of the compose specification."""

    def test_it_is_valid(self) -> None:
        assert set(validated(interpolated(TEXT)).service_names()) == set(SERVICES)

    @pytest.mark.parametrize(
        ("said", "meant"),
        [
            ("read_only: true", "read_onyl: true"),
            ("restart: unless-stopped", "restart: sometimes"),
            ("networks: [front, workers]\n    volumes", "networks: [back, workers]\n    volumes"),
            ("secrets: [api-keys]", "secrets: [api-kays]"),
            ("interval: 10s", "interval: ten"),
        ],
    )
    def test_a_slip_is_found(self, said: str, meant: str) -> None:
        assert said in TEXT
        broken = interpolated(TEXT).replace(said, meant, 1)
        with pytest.raises(ValueError):  # noqa: PT011 (each slip has its own words)
            validated(broken)


def validated(text: str) -> compose_spec.PyCompose:
    parsed = compose_spec.PyOptions(apply_merge=True).from_yaml(text)
    parsed.validate()
    parsed.to_spec()
    return parsed


class TestReferences:
    """What the file says of other files and of itself."""

    def test_files_are_there(self) -> None:
        for name, service in SERVICES.items():
            for volume in service.get("volumes", []):
                source, target, *options = volume.split(":")
                if not source.startswith("."):
                    assert source in COMPOSE["volumes"], name
                    continue
                path = ROOT / source
                assert path.exists(), f"{name}: {source}"
                assert options == ["ro"]
                if path.is_file():
                    assert Path(target).name == path.name

    def test_secrets_are_named_and_never_committed(self) -> None:
        used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
        assert used == set(COMPOSE["secrets"])
        ignored = (ROOT / ".gitignore").read_text().splitlines()
        for secret in COMPOSE["secrets"].values():
            path = Path(secret["file"])
            assert f"{path.parent}/" in ignored
        for service in SERVICES.values():
            for name, value in service.get("environment", {}).items():
                if value.startswith("/run/secrets/"):
                    assert name.endswith(("_FILE", "__FILE"))
                    assert Path(value).name in service["secrets"]
                else:
                    assert not re.search(r"PASSWORD|SECRET|TOKEN", name)

    def test_images_are_pinned(self) -> None:
        import tomllib

        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        for name, service in SERVICES.items():
            image, _, tag = service["image"].partition(":")
            if name in OURS:
                assert (image, tag) == (f"whybox-{service['build']['target']}", version)
                assert service["build"]["target"] in FILE.stages
            else:
                assert re.match(r"v?\d+\.\d+(\.\d+)?", tag), f"{image} has no pinned tag"

    def test_networks_and_services_that_are_waited_for_are_there(self) -> None:
        for service in SERVICES.values():
            assert set(service["networks"]) <= set(COMPOSE["networks"])
            for other in service.get("depends_on", {}):
                built = "build" in SERVICES[other]
                check = FILE.effective(other, "HEALTHCHECK") if built else SERVICES[other]["healthcheck"]
                assert check


class TestConfinement:
    """What a container may do."""

    @pytest.mark.parametrize("name", SERVICES)
    def test_every_service_is_hardened(self, name: str) -> None:
        service = SERVICES[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert service["mem_limit"]
        assert "privileged" not in service
        if name != "postgres":  # becomes its own user
            assert "cap_add" not in service

    def test_ports_are_published_to_this_machine_alone(self) -> None:
        for service in SERVICES.values():
            for port in service.get("ports", []):
                assert port.startswith("127.0.0.1:")

    def test_the_gateway_and_prometheus_alone_reach_torchserve(self) -> None:
        torchserve = SERVICES["torchserve"]
        assert "ports" not in torchserve
        (network,) = torchserve["networks"]
        assert COMPOSE["networks"][network] == {"internal": True}
        assert {n for n, s in SERVICES.items() if network in s["networks"]} == {*OURS, "prometheus"}

    @pytest.mark.parametrize("name", REPLICAS)
    def test_there_are_keys(self, name: str) -> None:
        environment = SERVICES[name]["environment"]
        assert "WHYBOX_API_KEYS_FILE" in environment
        assert "WHYBOX_ALLOW_ANONYMOUS" not in environment


class TestReplicas:
    """The second gateway is the first one under another name."""

    def test_they_differ_in_what_they_must(self) -> None:
        first, second = (SERVICES[name] for name in REPLICAS)
        assert first["environment"] | {"WHYBOX_JOBS_EXECUTOR": "gateway-2"} == second["environment"]
        assert second["environment"]["WHYBOX_JOBS_EXECUTOR"] != Settings.model_fields["jobs_executor"].default
        different = {key for key in {*first, *second} if first.get(key) != second.get(key)}
        assert different == {"environment", "networks", "ports", "profiles"}
        assert not set(first["ports"]) & set(second["ports"])
        assert set(first["networks"]) == set(second["networks"])

    def test_prometheus_finds_both_under_one_name(self) -> None:
        (found,) = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"][
            0
        ]["dns_sd_configs"]
        shared = set(SERVICES["prometheus"]["networks"]) & set(SERVICES["gateway-2"]["networks"])
        assert shared
        for network in shared:
            assert SERVICES["gateway-2"]["networks"][network]["aliases"] == found["names"]

    def test_postgres_comes_with_them(self) -> None:
        assert set(SERVICES["gateway-2"]["profiles"]) <= set(SERVICES["postgres"]["profiles"])


class TestWhatItSaysOfWhybox:
    """Settings, ports and addresses are those of the programs."""

    def test_every_setting_is_real(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = {f"WHYBOX_{name}".upper() for name in Settings.model_fields}
        for name in OURS:
            own = {n for n in SERVICES[name]["environment"] if n.startswith("WHYBOX_")}
            assert own <= names
        for name, value in SERVICES["gateway"]["environment"].items():
            monkeypatch.setenv(name, value)
        settings = Settings()
        exposed = FILE.effective("torchserve", "EXPOSE")
        assert exposed is not None
        inference, management, metrics = exposed.rest.split()
        assert settings.inference_url == f"http://torchserve:{inference}"
        assert settings.management_url == f"http://torchserve:{management}"
        scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
        gateway, torchserve = scraped["scrape_configs"]
        assert torchserve["static_configs"] == [{"targets": [f"torchserve:{metrics}"]}]
        (found,) = gateway["dns_sd_configs"]
        assert (found["names"], found["port"]) == (["gateway"], settings.port)

    def test_ports_are_those_of_the_gateway(self) -> None:
        inside = [int(port.rpartition(":")[2]) for port in SERVICES["gateway"]["ports"]]
        assert inside == [Settings.model_fields[name].default for name in ("port", "grpc_port")]

    def test_it_may_finish(self) -> None:
        grace = float(SERVICES["gateway"]["stop_grace_period"].removesuffix("s"))
        assert grace > Settings.model_fields["shutdown_seconds"].default

    def test_gateway_and_workers_share_the_folder_of_departures(self) -> None:
        shared = {SERVICES[name]["environment"]["WHYBOX_DEPARTURES_DIR"] for name in OURS}
        (folder,) = shared
        for name in OURS:
            assert f"calls:{folder}" in SERVICES[name]["volumes"]
        user = FILE.effective("gateway", "USER")
        assert user is not None
        uid, _, gid = user.rest.partition(":")
        assert f"uid={uid},gid={gid}" in COMPOSE["volumes"]["calls"]["driver_opts"]["o"]


class TestTheDockerfile:
    """What can be said of the Dockerfile without an engine."""

    def test_nothing_runs_as_root(self) -> None:
        for name in ("gateway", "torchserve", "serve"):
            user = FILE.effective(name, "USER")
            assert user is not None
            assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user.rest), f"{name} runs as {user.rest}"

    def test_the_last_stage_is_all_in_one(self) -> None:
        assert list(FILE.stages)[-1] == "serve"

    def test_the_base_is_pinned(self) -> None:
        assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", FILE.arguments["PYTHON_IMAGE"])
        bases = {stage.base for stage in FILE.stages.values()} - set(FILE.stages)
        assert bases == {FILE.arguments["PYTHON_IMAGE"]}

    @pytest.mark.parametrize("name", ["gateway", "torchserve", "serve"])
    def test_commands_and_health_checks_are_there(self, name: str) -> None:
        for word in ("CMD", "HEALTHCHECK"):
            instruction = FILE.effective(name, word)
            assert instruction is not None
            command = instruction.command
            if command[:2] == ["python", "-m"]:
                assert importlib.util.find_spec(command[2]), command
            else:
                assert command[0] == "whybox"

    def test_what_is_copied_is_there_and_not_ignored(self) -> None:
        admitted = {
            line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
        }
        copied = set()
        for stage in FILE.stages.values():
            for instruction in stage.instructions:
                if instruction.word != "COPY":
                    continue
                if source := instruction.flags.get("from"):
                    assert source in FILE.stages
                    continue
                *sources, _ = instruction.arguments.split()
                copied |= set(sources)
        assert all((ROOT / source).exists() for source in copied)
        assert copied == admitted

    def test_settings_are_real_and_nobody_is_let_in(self) -> None:
        names = {f"WHYBOX_{name}".upper() for name in Settings.model_fields}
        for stage in ("gateway", "torchserve", "serve"):
            environment = FILE.environment(stage, {})
            assert {name for name in environment if name.startswith("WHYBOX_")} <= names
            assert "WHYBOX_ALLOW_ANONYMOUS" not in environment

    def test_the_gateway_has_no_torch(self) -> None:
        built = [i.rest for i in FILE.stages["gateway-build"].instructions if i.word == "RUN"]
        assert any('".[service,otel]"' in command for command in built)
        assert not any("serve]" in command.replace("service", "") for command in built)
