"""The contract itself: the committed stubs, and the rules that every message and error keeps."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from whybox_proto.errors import ERRORS
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

ROOT = Path(__file__).parent.parent
STUBS = Path("whybox_proto", "v1")
FILES: dict[str, FileDescriptor] = {
    file.DESCRIPTOR.name: file.DESCRIPTOR for file in (types_pb2, explainer_pb2, worker_pb2)
}
PUBLIC = ("service/whybox_service/rest", "service/whybox_service/rpc", "clients/python")
SNAKE_CASE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
SERVICE_PATH = (FileDescriptorProto.SERVICE_FIELD_NUMBER, 0, 2)
"""Where protoc puts the comments of the first service's rpcs: service 0, its method (field 2) n."""


def messages(file: FileDescriptor) -> Iterator[Descriptor]:
    """Every message of a file but the entries of its maps."""
    waiting = list(file.message_types_by_name.values())
    while waiting:
        message = waiting.pop()
        if not message.GetOptions().map_entry:
            yield message
        waiting += message.nested_types


def protoc(*arguments: str) -> None:
    """Run protoc at the repository's root."""
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], cwd=ROOT, check=True)


def test_the_committed_stubs_are_what_make_proto_generates(tmp_path: Path) -> None:
    """Runs the very commands of the Makefile, with another folder for what they write."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(r"^proto:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert found, "the Makefile has no target proto"
    commands = [line.strip() for line in found[1].splitlines()]
    for command in commands:
        assert command.startswith("$(BIN)/python -m grpc_tools.protoc -I proto --"), command
        command = command.replace("$(BIN)/python", f"'{sys.executable}'")
        command = command.replace("_out=proto", f"_out='{tmp_path}'")
        subprocess.run(command, shell=True, cwd=ROOT, check=True)
    generated = {path.name: path.read_bytes() for path in (tmp_path / STUBS).iterdir()}
    committed = {path.name: path.read_bytes() for path in (ROOT / "proto" / STUBS).glob("*_pb2*.py*")}
    assert sorted(generated) == sorted(committed)
    stale = [name for name, content in generated.items() if content != committed[name]]
    assert not stale, "run `make proto`"


def test_every_proto_has_stubs_and_only_the_service_has_grpc_ones() -> None:
    folder = ROOT / "proto" / STUBS
    protos = {path.stem for path in folder.glob("*.proto")}
    assert protos == {Path(name).stem for name in FILES}
    assert {path.name for path in folder.glob("*_pb2_grpc.py")} == {"explainer_pb2_grpc.py"}


@pytest.mark.parametrize("name", FILES)
def test_the_package_carries_the_version(name: str) -> None:
    """A change that breaks clients gets a package and a folder of its own, beside this one."""
    assert FILES[name].package == "whybox.v1"
    assert name == f"whybox_proto/v1/{Path(name).name}"
    assert (ROOT / "proto" / name).read_text(encoding="utf-8").count('\nsyntax = "proto3";\n') == 1


def test_every_name_is_snake_case() -> None:
    fields = [field for file in FILES.values() for message in messages(file) for field in message.fields]
    assert len(fields) > 100
    assert [field.full_name for field in fields if not SNAKE_CASE.fullmatch(field.name)] == []


def test_closed_sets_are_strings_and_not_enums() -> None:
    for file in FILES.values():
        assert not file.enum_types_by_name
        for message in messages(file):
            assert not message.enum_types_by_name, message.full_name
            kinds = {field.type for field in message.fields}
            assert FieldDescriptor.TYPE_ENUM not in kinds, message.full_name


@pytest.mark.parametrize(
    ("less", "more"),
    [
        (explainer_pb2.DetectRequest, explainer_pb2.ExplainRequest),
        (explainer_pb2.DetectResponse, explainer_pb2.ExplainResponse),
    ],
)
def test_explain_has_what_detect_has_under_the_same_numbers(less: type, more: type) -> None:
    theirs = {(field.name, field.number, field.type) for field in more.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    ours = {(field.name, field.number, field.type) for field in less.DESCRIPTOR.fields}  # type: ignore[attr-defined]
    assert ours < theirs


def test_every_rpc_is_commented_with_its_address(tmp_path: Path) -> None:
    target = tmp_path / "set"
    file = "whybox_proto/v1/explainer.proto"
    protoc("-I", "proto", f"--descriptor_set_out={target}", "--include_source_info", file)
    described = FileDescriptorSet.FromString(target.read_bytes()).file[0]
    places = described.source_code_info.location
    comments = {tuple(place.path): place.leading_comments.strip() for place in places}
    (service,) = described.service
    assert service.name == "Explainer"
    assert len(service.method) == 12
    for number, method in enumerate(service.method):
        comment = comments.get((*SERVICE_PATH, number), "")
        assert re.match(r"(GET|POST|DELETE) /v1/(models|inversions)\b", comment), method.name


def test_the_service_speaks_in_public_messages_only() -> None:
    """What the gateway and a worker say to each other may change without a client noticing."""
    reached: set[str] = set()
    waiting = [explainer_pb2.DESCRIPTOR]
    while waiting:
        file = waiting.pop()
        reached.add(file.name)
        waiting += file.dependencies
    assert types_pb2.DESCRIPTOR.name in reached
    assert worker_pb2.DESCRIPTOR.name not in reached


@pytest.mark.parametrize("folder", PUBLIC)
def test_no_transport_and_no_client_imports_the_workers_protocol(folder: str) -> None:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert not any("worker_pb2" in name for name in names), path


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_has_a_status_on_both_transports(name: str) -> None:
    row = ERRORS[name]
    assert row.name == name
    assert SNAKE_CASE.fullmatch(name)
    assert HTTPStatus(row.http_status) >= HTTPStatus.BAD_REQUEST
    assert grpc.StatusCode[row.grpc_code] is not grpc.StatusCode.OK
    assert row.title[0].isupper()
    assert not row.title.endswith(".")


def test_only_what_can_pass_by_itself_is_retryable() -> None:
    assert {row.http_status for row in ERRORS.values() if row.retryable} == {408, 429, 503, 504}
    assert all(row.retryable for row in ERRORS.values() if row.http_status in (429, 503, 504))
