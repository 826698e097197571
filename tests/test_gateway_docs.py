"""`docs/api.md` tells the truth: its curl and Python run, what it sends over gRPC are our messages."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2

from conftest import Live
from whybox_proto.v1 import explainer_pb2

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
SERVICES = {
    service.full_name: service
    for file in (explainer_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
}


def blocks(language: str, part: str) -> list[str]:
    return [block for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if part in block]


@pytest.fixture
def folder(tmp_path: Path, picture: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the picture that the page speaks of."""
    (tmp_path / "street.jpg").write_bytes(picture)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def here(code: str, live: Live) -> str:
    """The page's code, at the addresses of the test."""
    for said, meant in (
        ("http://127.0.0.1:8000", live.rest),
        ("grpc://127.0.0.1:8001", live.grpc),
        ("retinanet-signs", live.model),
        ("gate-open", "alpha"),
    ):
        code = code.replace(said, meant)
    return code


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("block", blocks("sh", "curl -s"))
def test_curl_gets_an_answer(live: Live, folder: Path, block: str) -> None:
    script = "set -euo pipefail\n" + here(block, live).replace("curl -s", "curl -s --fail-with-body")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=folder)
    assert (done.returncode != 0) == ("# fails" in block), done.stdout + done.stderr
    if "why.png" in block:
        assert (folder / "why.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("block", blocks("sh", "grpcurl"))
def test_grpcurl_sends_our_messages(block: str) -> None:
    calls = re.findall(r"(?:(?:printf|-d) '(\{[^']*\})'[^']*?)?127\.0\.0\.1:8001 ([\w.]+)/(\w+)", block)
    assert calls
    for body, service, name in calls:
        method = SERVICES[service].methods_by_name[name]
        json_format.Parse(body.replace("%s", "") or "{}", GetMessageClass(method.input_type)())


@pytest.mark.usefixtures("folder")
def test_python_runs(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    code = here("\n".join(blocks("python", "")), live)
    names: dict[str, Any] = {}
    try:
        exec(compile(code, "docs/api.md", "exec"), names)
    finally:
        names["client"].close()
    assert "targets[1] one of: class" in capsys.readouterr().out
    assert Path("why.png").exists()
