"""The manifests are what Kubernetes takes, fit together, and speak of what whybox really has."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import jsonpatch
import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

import dockerfile
import kustomize
from kustomize import Object
from whybox_service import workers
from whybox_service.jobs.artifacts import place_of
from whybox_service.jobs.database import url_of
from whybox_service.keys import read_text
from whybox_service.metrics import Metrics
from whybox_service.rest import openapi
from whybox_service.settings import Settings

ROOT = Path(__file__).parent.parent
MANIFESTS = ROOT / "deploy" / "kubernetes"
KINDS = ("base", "overlays/gpu", "overlays/jobs", "overlays/production")
JOBS = MANIFESTS / "overlays/jobs"
# The oldest release that docs/deploy.md names, and the newest that the package knows.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
GATEWAY = {"app.kubernetes.io/name": "whybox-gateway"}
TORCHSERVE = {"app.kubernetes.io/name": "whybox-torchserve"}
FILE = dockerfile.read(ROOT / "Dockerfile")


@pytest.fixture(params=KINDS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """All objects of the base, or of an overlay."""
    return kustomize.render(MANIFESTS / request.param)


def examples() -> list[Object]:
    """The Secrets that must be there."""
    return [
        *kustomize.load(MANIFESTS / "secret.example.yaml"),
        *kustomize.load(JOBS / "secret.example.yaml"),
    ]


def one(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name)]
    return found


def gateway(objects: list[Object]) -> Object:
    """What makes the gateways' pods, of whatever kind it is."""
    (found,) = [o for o in pods(objects) if o["metadata"]["name"] == "whybox-gateway"]
    return found


def pods(objects: list[Object]) -> list[Object]:
    """The objects that make pods."""
    return [o for o in objects if "template" in o.get("spec", {})]


def matches(selector: Object, labels: Object) -> bool:
    wanted = selector.get("matchLabels", selector)
    return wanted.items() <= labels.items()


class TestSchemas:
    """Each object against the schemas of Kubernetes, unknown fields refused."""

    @pytest.mark.parametrize("version", VERSIONS)
    def test_every_object_is_valid(self, objects: list[Object], version: str) -> None:
        for o in [*objects, *examples()]:
            kubernetes_validate.validate(o, version, strict=True)

    def test_a_slip_is_found(self) -> None:
        made = one(kustomize.render(MANIFESTS / "base"), "Deployment", "whybox-gateway")
        made["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(made, VERSIONS[0], strict=True)

    def test_every_file_is_used(self) -> None:
        named = {
            MANIFESTS / "base" / name
            for name in yaml.safe_load((MANIFESTS / "base" / "kustomization.yaml").read_text())["resources"]
        }
        assert named == set((MANIFESTS / "base").glob("*.yaml")) - {MANIFESTS / "base" / "kustomization.yaml"}

    def test_an_overlay_that_names_nothing_is_found(self, tmp_path: Path) -> None:
        (tmp_path / "base").symlink_to(MANIFESTS / "base")
        patch = "- {op: replace, path: /spec/replicas/nothing, value: 1}"
        target = {"kind": "Deployment", "name": "whybox-gateway"}
        overlay = {"resources": ["base"], "patches": [{"target": target, "patch": patch}]}
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        with pytest.raises(jsonpatch.JsonPointerException):
            kustomize.render(tmp_path)

    def test_a_kind_that_changes_without_leave_is_found(self, tmp_path: Path) -> None:
        (tmp_path / "base").symlink_to(MANIFESTS / "base")
        patch = "- {op: replace, path: /kind, value: StatefulSet}"
        target = {"kind": "Deployment", "name": "whybox-gateway"}
        overlay = {"resources": ["base"], "patches": [{"target": target, "patch": patch}]}
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
        with pytest.raises(ValueError, match="changes the kind"):
            kustomize.render(tmp_path)


class TestReferences:
    """What one object says of another."""

    def test_names_are_unique(self, objects: list[Object]) -> None:
        names = [(o["kind"], o["metadata"]["name"]) for o in objects]
        assert len(set(names)) == len(names)

    def test_selectors_find_their_pods(self, objects: list[Object]) -> None:
        labels = {o["metadata"]["name"]: o["spec"]["template"]["metadata"]["labels"] for o in pods(objects)}
        for o in pods(objects):
            assert matches(o["spec"]["selector"], labels[o["metadata"]["name"]])
            for constraint in o["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
                assert matches(constraint["labelSelector"], labels[o["metadata"]["name"]])
        for kind in ("Service", "PodDisruptionBudget"):
            found = [o for o in objects if o["kind"] == kind]
            assert found
            for o in found:
                hits = [name for name, has in labels.items() if matches(o["spec"]["selector"], has)]
                assert hits == [o["metadata"]["name"]]

    def test_services_name_ports_that_are_there(self, objects: list[Object]) -> None:
        for service in (o for o in objects if o["kind"] == "Service"):
            (pod,) = (o for o in pods(objects) if o["metadata"]["name"] == service["metadata"]["name"])
            (container,) = kustomize.containers(pod)
            named = {port["name"] for port in container["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= named

    def test_ports_are_those_of_the_programs(self, objects: list[Object]) -> None:
        fields = Settings.model_fields
        ports = {
            o["metadata"]["name"]: {p["name"]: p["containerPort"] for p in c["ports"]}
            for o in pods(objects)
            for c in kustomize.containers(o)
        }
        assert ports["whybox-gateway"] == {
            "http": fields["port"].default,
            "grpc": fields["grpc_port"].default,
        }
        defaults = workers._parser().parse_args(["serve", "--model-store", "x"])
        assert ports["whybox-torchserve"] == {
            "inference": defaults.inference_port,
            "management": defaults.management_port,
            "metrics": defaults.metrics_port,
        }

    def test_configuration_is_there(self, objects: list[Object]) -> None:
        maps = {o["metadata"]["name"] for o in objects if o["kind"] == "ConfigMap"}
        accounts = {o["metadata"]["name"] for o in objects if o["kind"] == "ServiceAccount"}
        secrets = {one["metadata"]["name"]: set(one["stringData"]) for one in examples()} | {
            "whybox-tls": set()
        }
        claims = {o["metadata"]["name"] for o in objects if o["kind"] == "PersistentVolumeClaim"}
        used = set()
        for o in pods(objects):
            spec = o["spec"]["template"]["spec"]
            assert spec["serviceAccountName"] in accounts
            used |= {source["configMapRef"]["name"] for c in spec["containers"] for source in c["envFrom"]}
            volumes = {volume["name"]: volume for volume in spec["volumes"]}
            for container in spec["containers"]:
                assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
            assert {v["secret"]["secretName"] for v in volumes.values() if "secret" in v} <= set(secrets)
            claimed = [v["persistentVolumeClaim"] for v in volumes.values() if "persistentVolumeClaim" in v]
            assert {claim["claimName"] for claim in claimed} <= claims
            for container in spec["containers"]:
                for variable in container.get("env", []):
                    if reference := variable["valueFrom"].get("secretKeyRef"):
                        assert reference["key"] in secrets[reference["name"]]
        assert used == maps

    def test_the_headless_service_is_the_stateful_sets_own(self, objects: list[Object]) -> None:
        stateful = one(objects, "StatefulSet", "whybox-torchserve")
        service = one(objects, "Service", stateful["spec"]["serviceName"])
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"]
        assert stateful["spec"]["replicas"] == 1

    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "overlays/jobs"])
    def test_the_autoscaler_scales_the_gateway(self, kind: str) -> None:
        objects = kustomize.render(MANIFESTS / kind)
        scaler = one(objects, "HorizontalPodAutoscaler", "whybox-gateway")["spec"]
        target = scaler["scaleTargetRef"]
        scaled = one(objects, target["kind"], target["name"])
        assert target["apiVersion"] == scaled["apiVersion"]
        # A number in both places would undo the autoscaler's with each apply.
        assert "replicas" not in scaled["spec"]
        assert scaler["minReplicas"] >= 2
        ((metric),) = scaler["metrics"]
        name = metric["pods"]["metric"]["name"]
        registered = Metrics(lambda _: True, dict, lambda: True).registry
        assert isinstance(registered, CollectorRegistry)
        (described,) = [family for family in registered.collect() if family.name == name]
        assert described.type == "gauge"
        (rule,) = yaml.safe_load((MANIFESTS / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
        assert rule["seriesQuery"].partition("{")[0] == name
        assert "operation!~" in rule["metricsQuery"]


class TestWhatItSaysOfWhybox:
    """Settings, probes, images and users are those of the programs and the Dockerfile."""

    def test_every_setting_is_real(self, objects: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
        data = one(objects, "ConfigMap", "whybox-gateway")["data"]
        names = {f"WHYBOX_{name}".upper() for name in Settings.model_fields}
        for o in (o for o in objects if o["kind"] == "ConfigMap"):
            assert {name for name in o["data"] if name.startswith("WHYBOX_")} <= names
        for o in pods(objects):
            for c in kustomize.containers(o):
                assert {variable["name"] for variable in c.get("env", [])} <= names
        for name, value in data.items():
            monkeypatch.setenv(name, value)
        settings = Settings()
        service = one(objects, "Service", "whybox-torchserve")
        ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
        name = service["metadata"]["name"]
        assert settings.inference_url == f"http://{name}:{ports['inference']}"
        assert settings.management_url == f"http://{name}:{ports['management']}"
        (container,) = kustomize.containers(gateway(objects))
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for path in (settings.api_keys_file, settings.tls_certificate, settings.tls_key):
            assert path is None or str(path.parent) in mounts
        assert settings.api_keys_file is not None
        example = kustomize.load(MANIFESTS / "secret.example.yaml")[0]["stringData"]
        assert settings.api_keys_file.name in example
        assert read_text(example[settings.api_keys_file.name].strip(), "the example")

    def test_pods_have_time_to_stop(self, objects: list[Object]) -> None:
        spec = gateway(objects)["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
        needed = pause + Settings.model_fields["shutdown_seconds"].default
        assert spec["terminationGracePeriodSeconds"] > needed
        spec = one(objects, "StatefulSet", "whybox-torchserve")["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] > workers.GRACE_SECONDS + 10

    def test_probes_ask_what_answers(self, objects: list[Object]) -> None:
        (container,) = kustomize.containers(gateway(objects))
        tls = "WHYBOX_TLS_CERTIFICATE" in one(objects, "ConfigMap", "whybox-gateway")["data"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container[name]["httpGet"]
            assert asked["path"] in openapi.document()["paths"]
            assert asked["port"] in {port["name"] for port in container["ports"]}
            assert asked.get("scheme", "HTTP") == ("HTTPS" if tls else "HTTP")
        (torchserve,) = kustomize.containers(one(objects, "StatefulSet", "whybox-torchserve"))
        for name in ("startupProbe", "readinessProbe"):
            python, module, *command = torchserve[name]["exec"]["command"]
            assert (python, module) == ("python", "-m")
            assert importlib.util.find_spec(command[0])
            assert workers._parser().parse_args(command[1:]).what == "probe"
            model_store = str(workers._parser().parse_args(command[1:]).model_store)
            check = FILE.effective("torchserve", "HEALTHCHECK")
            assert check is not None
            assert model_store in check.command

    def test_images_are_those_of_the_dockerfile(self, objects: list[Object]) -> None:
        import tomllib

        version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
        for o in pods(objects):
            for container in kustomize.containers(o):
                name, _, tag = container["image"].rpartition("/")[2].partition(":")
                assert name.removeprefix("whybox-") in FILE.stages
                assert tag == version

    def test_pods_are_confined(self, objects: list[Object]) -> None:
        for o in pods(objects):
            spec = o["spec"]["template"]["spec"]
            user = FILE.effective(o["metadata"]["name"].removeprefix("whybox-"), "USER")
            assert user is not None
            context = spec["securityContext"]
            assert f"{context['runAsUser']}:{context['runAsGroup']}" == user.rest
            assert context["runAsNonRoot"] is True
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert spec["automountServiceAccountToken"] is False
            for container in spec["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert set(container["resources"]["requests"]) >= {"cpu", "memory"}
                assert "memory" in container["resources"]["limits"]


class TestNetworkPolicies:
    """TorchServe has no authentication, so its ports are the gateway's alone."""

    def test_every_pod_has_one(self, objects: list[Object]) -> None:
        policies = [o for o in objects if o["kind"] == "NetworkPolicy"]
        for o in pods(objects):
            labels = o["spec"]["template"]["metadata"]["labels"]
            (policy,) = [p for p in policies if matches(p["spec"]["podSelector"], labels)]
            assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
            named = {port["name"] for c in kustomize.containers(o) for port in c["ports"]}
            opened = {p["port"] for rule in policy["spec"]["ingress"] for p in rule["ports"]}
            assert opened == named

    def test_the_gateway_alone_reaches_the_workers(self, objects: list[Object]) -> None:
        policy = one(objects, "NetworkPolicy", "whybox-torchserve")["spec"]
        for rule in policy["ingress"]:
            opened = {port["port"] for port in rule["ports"]}
            if opened & {"inference", "management"}:
                assert rule["from"] == [{"podSelector": {"matchLabels": GATEWAY}}]
            else:
                assert opened == {"metrics"}
        assert policy["egress"] == []

    def test_the_gateway_reaches_the_workers(self, objects: list[Object]) -> None:
        rules: list[Any] = one(objects, "NetworkPolicy", "whybox-gateway")["spec"]["egress"]
        (to_workers,) = [
            rule for rule in rules if rule["to"] == [{"podSelector": {"matchLabels": TORCHSERVE}}]
        ]
        assert {port["port"] for port in to_workers["ports"]} == {"inference", "management"}


class TestGpu:
    """The overlay changes what it says, and nothing else."""

    def test_the_workers_get_one(self) -> None:
        base = kustomize.render(MANIFESTS / "base")
        changed = kustomize.render(MANIFESTS / "overlays/gpu")
        names = {o["metadata"]["name"] for o, other in zip(base, changed, strict=True) if o != other}
        assert names == {"whybox-torchserve"}
        spec = one(changed, "StatefulSet", "whybox-torchserve")["spec"]["template"]["spec"]
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
        data = one(changed, "ConfigMap", "whybox-torchserve")["data"]
        assert "utility" in data["NVIDIA_DRIVER_CAPABILITIES"]


class TestJobs:
    """Gateways that share inversions keep their names, and reach what they share."""

    @pytest.fixture
    def shared(self) -> list[Object]:
        return kustomize.render(JOBS)

    def test_the_gateways_keep_their_names(self, shared: list[Object]) -> None:
        made = gateway(shared)
        assert made["kind"] == "StatefulSet"
        assert one(shared, "Service", made["spec"]["serviceName"])
        assert made["spec"]["replicas"] >= 2
        (container,) = kustomize.containers(made)
        names = {variable["name"]: variable["valueFrom"] for variable in container["env"]}
        assert names["WHYBOX_JOBS_EXECUTOR"] == {"fieldRef": {"fieldPath": "metadata.name"}}
        # Nothing takes one away without its jobs being handed over.
        assert not [o for o in shared if o["kind"] == "HorizontalPodAutoscaler"]

    def test_the_rest_of_the_pod_is_that_of_the_base(self, shared: list[Object]) -> None:
        base = gateway(kustomize.render(MANIFESTS / "base"))["spec"]["template"]["spec"]
        spec = gateway(shared)["spec"]["template"]["spec"]
        (container,), (plain,) = spec["containers"], base["containers"]
        assert {key for key in container if container[key] != plain.get(key)} == {"env", "volumeMounts"}
        assert {key for key in spec if spec[key] != base.get(key)} == {"containers", "volumes"}

    def test_artifacts_are_where_the_volume_is(self, shared: list[Object]) -> None:
        where = one(shared, "ConfigMap", "whybox-gateway")["data"]["WHYBOX_JOBS_ARTIFACTS"]
        (container,) = kustomize.containers(gateway(shared))
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "artifacts"]
        assert mount["mountPath"] == where
        claim = one(shared, "PersistentVolumeClaim", "whybox-artifacts")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]

    def test_the_gateways_reach_postgres(self, shared: list[Object]) -> None:
        policy = one(shared, "NetworkPolicy", "whybox-gateway")["spec"]["egress"]
        assert [rule["ports"] for rule in policy][-1] == [{"protocol": "TCP", "port": 5432}]

    def test_the_settings_are_taken(self, shared: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
        (secret,) = kustomize.load(JOBS / "secret.example.yaml")
        data = one(shared, "ConfigMap", "whybox-gateway")["data"]
        for name, value in data.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("WHYBOX_JOBS_DATABASE", secret["stringData"]["database"])
        monkeypatch.setenv("WHYBOX_JOBS_EXECUTOR", "whybox-gateway-0")
        assert url_of(Settings()).startswith("postgresql://")
        assert place_of(Settings()) == data["WHYBOX_JOBS_ARTIFACTS"]
