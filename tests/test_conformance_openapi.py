"""The service does what its OpenAPI description says; schemathesis asks, in the thousands.

`WHYBOX_CONFORMANCE_EXAMPLES` is how many requests it makes up for each operation, beside those that cover the
description systematically.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from builders import encoded, random_image
from conftest import Live
from gateway_calls import b64
from test_pictures_live import worker_pids
from whybox_service.rest.openapi import document
from whybox_service.rest.schema import _BOUNDS

EXAMPLES = int(os.environ.get("WHYBOX_CONFORMANCE_EXAMPLES", "25"))
PATIENCE_SECONDS = 120 + 10 * EXAMPLES
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "allow_header_conformance",
)


def test_the_description_is_valid() -> None:
    OpenAPIV31SpecValidator(document()).validate()


def test_every_bound_is_of_a_field_that_is_described() -> None:
    schemas = document()["components"]["schemas"]
    for name, bound in _BOUNDS.items():
        message, field = name.split(".")
        where = schemas.get(message) or {"properties": {field: bound}}
        assert bound.items() <= where["properties"][field].items()


def test_any_request_gets_an_answer_that_is_described(live: Live, tmp_path: Path) -> None:
    # Deadlines of 5e-324 seconds are among the requests.
    allowed = {"not_a_server_error": ["2xx", "4xx", 501, 504]}
    schemathesis(live, httpx.get(f"{live.rest}/openapi.json", verify=False).json(), tmp_path, CHECKS, allowed)


def test_what_is_described_is_taken_and_nothing_else(live: Live, tmp_path: Path) -> None:
    before = worker_pids(live)
    # What depends on the model is refused although its type is right; some of the contract is not served yet.
    allowed = {
        "not_a_server_error": ["2xx", "4xx", 501],
        "negative_data_rejection": [400, 404, 405, 406, 413, 415, 501],
        "positive_data_acceptance": ["2xx", 400, 404, 501],
    }
    checks = (*CHECKS, "negative_data_rejection", "positive_data_acceptance")
    schemathesis(live, narrowed(live), tmp_path, checks, allowed)
    assert worker_pids(live) == before


def narrowed(live: Live) -> dict[str, Any]:
    """The description with models that there are, a picture in JSON that is one, and no headers."""
    described: dict[str, Any] = httpx.get(f"{live.rest}/openapi.json", verify=False).json()
    for path in described["paths"].values():
        for operation in path.values():
            operation["parameters"] = [p for p in operation.get("parameters", []) if "$ref" not in p]
            for parameter in operation["parameters"]:
                if (parameter["name"], parameter["in"]) == ("model", "path"):
                    parameter["schema"] = {"type": "string", "enum": live.models}
    for name in ("DetectRequest", "ExplainRequest"):
        message = described["components"]["schemas"][name]
        message["properties"]["image"] = {
            "type": "string",
            "enum": [b64(encoded(random_image(48, 64), "JPEG"))],
        }
        del message["properties"]["model"]
        message["required"] = ["image"]
    return described


def schemathesis(
    live: Live, described: dict[str, Any], folder: Path, checks: tuple[str, ...], allowed: dict[str, Any]
) -> None:
    """Run schemathesis over the service as a program of its own, with a fixed seed."""
    (folder / "openapi.json").write_text(json.dumps(described))
    lines = [f"{name}.expected-statuses = {json.dumps(statuses)}" for name, statuses in allowed.items()]
    (folder / "schemathesis.toml").write_text("\n".join(["[checks]", *lines]))
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml"]
    command += ["run", "openapi.json", "--url", live.rest, "--checks", ",".join(checks)]
    command += ["--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "1"]
    command += ["--generation-deterministic"]
    # An evaluation of everything that is found looks at the picture thousands of times.
    command += ["--request-timeout", "120", "--continue-on-failure", "--no-color"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    if done.returncode:
        pytest.fail(done.stdout[-8000:] + done.stderr[-2000:])
    assert " passed" in done.stdout
