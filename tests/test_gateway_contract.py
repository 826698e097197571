"""What holds for the gateway by construction: errors, settings, imports, the OpenAPI description."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from gateway_samples import SERVICE, leaves
from whybox_proto.errors import ERRORS, ContractError, to_problem
from whybox_proto.v1 import explainer_pb2
from whybox_service import errors
from whybox_service.operations import Operations, operation_name
from whybox_service.rest import openapi
from whybox_service.rest.comments import comments
from whybox_service.rest.routes import ADDRESSES
from whybox_service.settings import Settings

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_a_problem_and_a_status(name: str) -> None:
    error = ContractError(name, "what happened", field="select.box", expected="four", got="three")
    problem = to_problem(error, "id-1")
    assert problem == {
        "type": f"urn:whybox:error:{name}",
        "title": ERRORS[name].title,
        "status": ERRORS[name].http_status,
        "detail": "what happened",
        "request_id": "id-1",
        "field": "select.box",
        "expected": "four",
        "got": "three",
    }
    assert 400 <= problem["status"] < 600
    status = errors.to_status(error, "id-1")
    detail = explainer_pb2.Error()
    assert status.details[0].Unpack(detail)
    assert detail == error.to_message("id-1")
    assert (
        rpc_status.to_status(status).code is grpc.StatusCode[ERRORS[name].grpc_code] is not grpc.StatusCode.OK
    )


@pytest.mark.parametrize("name", ERRORS)
def test_both_transports_agree_on_whose_fault_it_is(name: str) -> None:
    row = ERRORS[name]
    ours = {"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"}
    assert (row.http_status >= 500) == (row.grpc_code in ours and name != "method_not_allowed")


def test_an_error_says_nothing_that_cannot_be_sent() -> None:
    error = ContractError("unknown_field", "\ud800", field="\udfff", got="\ud83d")
    assert json.dumps(to_problem(error, "id"), ensure_ascii=False).encode()
    assert errors.to_status(error, "id").SerializeToString()


def test_every_rpc_has_an_address_or_streams_what_one_gives() -> None:
    addressed = {address.rpc for address in ADDRESSES}
    assert {method.name for method in SERVICE.methods} - addressed == {"ExplainStream"}


def test_the_operations_are_rpcs() -> None:
    rpcs = {operation_name(method.name) for method in SERVICE.methods}
    public = {name for name in vars(Operations) if not name.startswith("_")}
    assert public - rpcs == {"check_room", "perform", "require", "stream"}


def test_every_setting_is_documented() -> None:
    text = (DOCS / "api.md").read_text()
    for name, field in Settings.model_fields.items():
        row = re.search(rf"^\| `WHYBOX_{name.upper()}` \| (.*?) \|", text, re.MULTILINE)
        assert row, f"WHYBOX_{name.upper()} is not in docs/api.md"
        if field.default is not None:
            assert row[1].strip("`") == str(field.default)


def test_every_error_is_documented() -> None:
    text = (DOCS / "api.md").read_text()
    for row in ERRORS.values():
        assert re.search(
            rf"^\| `{row.name}` \| {row.http_status} \| `{row.grpc_code}` \|", text, re.MULTILINE
        ), row.name


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHYBOX_DEADLINE_SECONDS", "7.5")
    assert Settings().deadline_seconds == 7.5
    monkeypatch.setenv("WHYBOX_PORT", "65536")
    with pytest.raises(ValueError, match="less than or equal to 65535"):
        Settings()


def test_a_deadline_is_capped() -> None:
    settings = Settings(deadline_seconds=5, max_deadline_seconds=60)
    assert [settings.seconds(asked) for asked in (None, 1, 1000)] == [5, 1, 60]


def test_the_gateway_imports_no_torch() -> None:
    heavy = {"torch", "numpy", "PIL", "whybox"}
    code = f"import sys, whybox_service.app; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_comments_of_the_protos_are_found() -> None:
    assert comments()["Model.ready"].startswith("The same as state.ready")
    assert comments()["Select"].startswith("Which detections")
    assert comments()["HeatMap.region"].endswith("less than one cell.")
    assert "Explainer.ListModels" in comments()


class TestOpenApi:
    """The description is made from the descriptors; here it is read back."""

    document = openapi.document()

    def test_every_reference_leads_somewhere(self) -> None:
        references = re.findall(r'"\$ref": "#/(.*?)"', json.dumps(self.document))
        assert references
        for reference in references:
            node = self.document
            for key in reference.split("/"):
                node = node[key]

    def test_every_served_address_is_described(self) -> None:
        for address in ADDRESSES:
            described = address.verb.lower() in self.document["paths"].get(address.path, {})
            assert described == hasattr(Operations, address.operation)

    def test_every_field_of_every_request_and_answer_is_described(self) -> None:
        for address in ADDRESSES:
            if not hasattr(Operations, address.operation):
                continue
            for kind in (address.request, address.response):
                if address.verb == "GET" and kind is address.request:
                    continue
                for path, field in leaves(kind):
                    assert self._property(GetMessageClass(kind).DESCRIPTOR.name, path), (path, field.name)

    def test_every_field_of_a_request_can_be_asked_for_by_query(self) -> None:
        for address in ADDRESSES:
            operation = self.document["paths"].get(address.path, {}).get(address.verb.lower())
            if operation is None:
                continue
            named = {p["name"] for p in operation["parameters"] if p.get("in") in ("query", "path")}
            asked = {path for path, field in leaves(address.request)}
            # What an evaluation explains stands below `explain`; the model's name in the path.
            subject = "explain." if "explain.model" in asked else ""
            asked -= {f"{subject}{name}" for name in ("image", "params", *address.fields)}
            assert named == asked | set(address.fields)

    def test_it_obeys_the_rules_of_openapi(self) -> None:
        from fastapi.openapi.models import OpenAPI

        OpenAPI.model_validate(self.document)
        names = [o["operationId"] for path in self.document["paths"].values() for o in path.values()]
        assert len(names) == len(set(names))

    def _property(self, name: str, path: str) -> object:
        schema = self.document["components"]["schemas"][name]
        head, _, rest = path.partition(".")
        found = schema["properties"][head]
        return self._property(found["$ref"].rsplit("/", 1)[1], rest) if rest else found
