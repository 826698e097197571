"""A real Prometheus scrapes a live gateway and its TorchServe; rules and dashboard find their data."""

from __future__ import annotations

import hashlib
import json
import math
import re
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import copy
from typing import Any

import httpx
import pytest
import yaml

from conftest import PATIENCE_SECONDS, Live, serving
from gateway_calls import b64, over_grpc, over_rest
from system_parts import need
from test_docs import anchors
from test_gateway_backend import NAME as FAULTY
from test_gateway_backend import pack

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy" / "prometheus"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "whybox.json").read_text())
RULES = [
    rule for group in yaml.safe_load((DEPLOY / "rules.yml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    (f"{panel['title']}: {target['refId']}", target["expr"])
    for panel in PANELS
    for target in panel["targets"]
]
KEYS = {name: "whybox_" + secrets.token_hex(32) for name in ("tester", "prometheus")}
BEARER = {name: f"Bearer {key}" for name, key in KEYS.items()}


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the samples of an expression now; an error of the expression is an error of the test."""
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=60).json()
        assert answer["status"] == "success", (expression, answer)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def values(self, expression: str) -> list[float]:
        """Return the numbers of an expression now, without those that are none."""
        numbers = [float(sample["value"][1]) for sample in self.query(expression)]
        return [number for number in numbers if math.isfinite(number)]

    def get(self, path: str) -> Any:
        """Return what another of its addresses answers."""
        return httpx.get(f"{self.url}/api/v1/{path}", timeout=60).json()["data"]


def until(true: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    patience = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < patience, what
        time.sleep(0.2)


@pytest.fixture(scope="module")
def service(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """The service with API keys, on a detector and on a model that misbehaves as it is told."""
    need("prometheus")
    need("promtool")
    store = tmp_path_factory.mktemp("observed_store")
    copy(min(archives.glob("retinanet*.mar")), store)
    pack(FAULTY, Path(__file__).with_name("faulty_worker.py"), store)
    hashes = (f"{name}:sha256:{hashlib.sha256(key.encode()).hexdigest()}" for name, key in KEYS.items())
    environment = {
        "WHYBOX_API_KEYS": ",".join(hashes),
        "WHYBOX_POLL_SECONDS": "0.5",
        "WHYBOX_MAX_WAITING": "1",
    }
    with serving(store, tmp_path_factory.mktemp("observed"), env=environment) as running:
        yield running


def ask(service: Live, rpc: str, request: dict[str, Any], transport: str = "rest", **headers: str) -> str:
    """Ask with a key; return ``ok`` or the type of the error."""
    headers = {"Authorization": BEARER["tester"], **headers}
    if transport == "rest":
        outcome = over_rest(service.rest, rpc, request, **headers)
    else:
        metadata = tuple((name.lower(), value) for name, value in headers.items())
        outcome = over_grpc(service.target, rpc, request, metadata=metadata)
    return outcome.error.get("type", "ok")


def make_traffic(service: Live, picture: bytes) -> None:
    """Good requests on both transports, and one of each kind of failure that the alerts are about."""
    good = {"model": detector(service), "image": b64(picture), "select": {"max_detections": 2}}
    faulty = {"model": FAULTY}
    assert ask(service, "CreateInversion", inversion(service)) == "ok"
    for transport in ("rest", "grpc"):
        for rpc in ("Detect", "Explain"):
            assert ask(service, rpc, good, transport) == "ok"
        assert ask(service, "Detect", {**faulty, "image": b64(b"raise")}, transport) == "backend_unavailable"
        assert ask(service, "Detect", good, transport, Authorization="Bearer none") == "unauthenticated"
    late = {**faulty, "image": b64(b"sleep 1")}
    assert ask(service, "Detect", late, **{"X-Request-Timeout": "0.2"}) == "deadline_exceeded"
    slow = {**faulty, "image": b64(b"sleep 0.5")}
    with ThreadPoolExecutor(8) as pool:
        assert "overloaded" in set(pool.map(lambda _: ask(service, "Detect", slow), range(8)))


def inversion(service: Live) -> dict[str, Any]:
    """A short inversion of one object."""
    headers = {"Authorization": BEARER["tester"]}
    model = httpx.get(f"{service.rest}/v1/models/{detector(service)}", headers=headers, timeout=60).json()
    thing = {"label": model["labels"][0], "box": [20, 20, 70, 70]}
    layout = {"width": 96, "height": 96, "objects": [thing]}
    return {"model": model["name"], "layout": layout, "params": {"iterations": 4}}


def detector(service: Live) -> str:
    """The model that sees."""
    return next(name for name in service.models if name != FAULTY)


@pytest.fixture(scope="module")
def configuration(service: Live, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`deploy/prometheus` with this service's addresses and key, and once a second."""
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "key").write_text(KEYS["prometheus"])
    (folder / "rules.yml").write_text((DEPLOY / "rules.yml").read_text())
    text = (DEPLOY / "prometheus.yml").read_text()
    # The lines that a gateway with keys needs stand there as comments.
    text = re.sub(r"# (authorization:|  type: Bearer|  credentials_file: .*)", r"\1", text)
    config = yaml.safe_load(text)
    config["global"] = dict.fromkeys(config["global"], "1s")
    gateway, torchserve = config["scrape_configs"]
    gateway["authorization"]["credentials_file"] = str(folder / "key")
    for job, url in ((gateway, service.rest), (torchserve, service.torchserve["metrics"])):
        job.pop("dns_sd_configs", None)
        job["static_configs"] = [{"targets": [httpx.URL(url).netloc.decode()]}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def prometheus(service: Live, configuration: Path, picture: bytes) -> Iterator[Prometheus]:
    """A Prometheus that has scraped both targets before, during and after some traffic."""
    folder = configuration.parent
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([need("prometheus"), *options], stdout=log, stderr=log)
    try:
        running = Prometheus(f"http://{address}")

        def answers() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                return httpx.get(f"{running.url}/-/ready", timeout=60).status_code == 200
            except httpx.TransportError:
                return False

        until(answers, "Prometheus is not ready")
        until(lambda: len(running.query("up == 1")) == 2, "not both targets are up")
        # A rate needs a series twice.
        for round_ in (1, 2):
            make_traffic(service, picture)
            for count in (
                'whybox_request_seconds_count{operation="explain", transport="grpc", code="ok"}',
                'whybox_request_seconds_count{code="deadline_exceeded"}',
                'sum(whybox_worker_request_seconds_count{operation="explain"}) / 2',
                'whybox_inversions_ended_total{state="succeeded"}',
            ):
                until(lambda: max(running.values(count), default=0) >= round_, count)  # noqa: B023
        until(lambda: running.values("model:whybox_late:ratio_rate5m > 0"), "the rules are not recorded")
        yield running
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_both_targets_are_scraped(prometheus: Prometheus) -> None:
    targets = prometheus.get("targets")["activeTargets"]
    assert {target["labels"]["job"]: target["health"] for target in targets} == {
        "whybox-gateway": "up",
        "whybox-torchserve": "up",
    }


def test_without_a_key_there_are_no_metrics(service: Live) -> None:
    assert httpx.get(f"{service.rest}/metrics", timeout=60).status_code == 401


@pytest.mark.parametrize("operation", ["detect", "explain"])
def test_it_answers_a_p99(prometheus: Prometheus, operation: str) -> None:
    expression = (
        "histogram_quantile(0.99, sum by (le) "
        f'(rate(whybox_request_seconds_bucket{{operation="{operation}", code="ok"}}[1m])))'
    )
    (p99,) = prometheus.values(expression)
    assert 0.001 < p99 < 60


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[title for title, _ in QUERIES])
def test_the_dashboard_has_data(prometheus: Prometheus, title: str, expression: str) -> None:
    # Grafana's interval is four scrapes at least; here the traffic is over soon.
    expression = expression.replace("$__rate_interval", "5m").replace("$model", ".*")
    for operation in ("detect", "explain") if "$operation" in expression else ("",):
        assert prometheus.values(expression.replace("$operation", operation)), title


def test_the_dashboards_other_queries(prometheus: Prometheus) -> None:
    (annotation,) = DASHBOARD["annotations"]["list"]
    prometheus.query(annotation["expr"])
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", variables["model"]["query"]["query"])
    assert found is not None
    names = {sample["metric"][found[2]] for sample in prometheus.query(found[1])}
    assert FAULTY in names
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used == {*variables, "__rate_interval", "__all"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_each_rule_has_data(prometheus: Prometheus, rule: dict[str, Any]) -> None:
    prometheus.query(rule["expr"])
    without_limit = re.sub(r" (==|>) [\d.]+$", "", rule["expr"].strip())
    assert ("alert" in rule) == (without_limit != rule["expr"].strip())
    assert prometheus.values(without_limit)
    if "record" in rule:
        assert prometheus.query(rule["record"])


def test_prometheus_finds_no_fault_with_the_rules(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_each_alert_says_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / page)


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [need("promtool"), *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=300, cwd=DEPLOY)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "rules.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "rules_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_passes_what_is_deployed(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_passes_the_configuration_with_a_key(configuration: Path) -> None:
    done = promtool("check", "config", configuration)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_knows_every_alert() -> None:
    tests = yaml.safe_load((DEPLOY / "rules_test.yml").read_text())["tests"]
    fired = {
        case["alertname"] for test in tests for case in test.get("alert_rule_test", []) if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in ALERTS}


@pytest.mark.usefixtures("prometheus")
def test_promtool_passes_the_gateways_metrics(service: Live) -> None:
    done = promtool("check", "metrics", text=scraped(service))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.usefixtures("prometheus")
def test_promtool_passes_our_metrics_of_torchserve(service: Live) -> None:
    text = httpx.get(service.torchserve["metrics"], timeout=60).text
    done = promtool("check", "metrics", text=text)
    # TorchServe's own names are against the rules; the text can be read, and ours are not.
    assert done.returncode in (0, 3), done.stderr
    assert "whybox_worker_stage_seconds_bucket" in text
    assert not [line for line in done.stderr.splitlines() if line.startswith("whybox")]


def scraped(service: Live) -> str:
    headers = {"Authorization": BEARER["prometheus"]}
    response = httpx.get(f"{service.rest}/metrics", headers=headers, timeout=60)
    assert response.status_code == 200
    return response.text


def series(service: Live) -> set[str]:
    """The names and labels of all series of ours."""
    texts = scraped(service), httpx.get(service.torchserve["metrics"], timeout=60).text
    lines = [line for text in texts for line in text.splitlines()]
    return {line.rpartition(" ")[0] for line in lines if line.startswith("whybox_")}


def test_no_request_makes_a_series_of_its_own(service: Live, picture: bytes) -> None:
    def ask_at_random(count: int) -> None:
        for i in range(count):
            word = secrets.token_hex(8)
            image = b64(picture)
            transport = "grpc" if i % 2 else "rest"
            match i % 5:
                case 0:
                    assert (
                        ask(service, "Detect", {"model": word, "image": image}, transport) == "unknown_model"
                    )
                case 1:
                    request = {"model": detector(service), "image": image, "method": word, "layer": word}
                    assert ask(service, "Explain", request, transport) == "unknown_method"
                case 2:
                    ask(service, "GetModel", {"model": word}, transport, Authorization=f"Bearer {word * 4}")
                case 3:
                    headers = {"Authorization": BEARER["tester"], "X-Request-Id": word, "User-Agent": word}
                    httpx.request(word, f"{service.rest}/{word}", headers=headers, timeout=60)
                case 4:
                    request = {"model": FAULTY, "image": b64(f"error {word}".encode())}
                    assert ask(service, "Detect", request, transport) == "internal"

    ask_at_random(10)
    before = series(service)
    ask_at_random(200)
    assert series(service) == before


def test_a_worker_that_was_lost_is_seen(service: Live) -> None:
    def restarts() -> float:
        found = re.search(
            rf'^whybox_model_worker_restarts_total{{model="{FAULTY}"}} (\S+)', scraped(service), re.M
        )
        return float(found[1]) if found else 0.0

    before = restarts()
    assert ask(service, "Detect", {"model": FAULTY, "image": b64(b"die")}) == "backend_unavailable"
    until(lambda: restarts() > before, "the new worker is not counted")
    until(lambda: f'whybox_model_ready{{model="{FAULTY}"}} 1.0' in scraped(service), "it is not ready")


def test_the_dashboards_panels_have_room_and_say_what_they_show() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
