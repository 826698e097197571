"""The OpenAPI description, made from the protobuf descriptors and the table of addresses."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from google.protobuf.descriptor import Descriptor

from whybox_proto.errors import ERRORS, PROBLEM_JSON, type_uri
from whybox_service.calls import MAX_REQUEST_ID
from whybox_service.operations import Operations
from whybox_service.rest import media, schema
from whybox_service.rest.exchange import REQUEST_ID, REQUEST_TIMEOUT
from whybox_service.rest.routes import ADDRESSES, Address

Json = dict[str, Any]

_HEADERS: dict[str, Json] = {
    REQUEST_ID: {"type": "string", "minLength": 1, "maxLength": MAX_REQUEST_ID, "pattern": "^[ -~]+$"},
    REQUEST_TIMEOUT: {"type": "number", "exclusiveMinimum": 0, "description": "Seconds."},
}
_READY: Json = {
    "type": "object",
    "required": ["ready", "models"],
    "properties": {
        "ready": {"type": "boolean"},
        "models": {"type": "array", "items": {"type": "string"}},
    },
}
_ALIVE: Json = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}


def document() -> Json:
    """Return the OpenAPI 3.1 description of what is served."""
    served = [address for address in ADDRESSES if hasattr(Operations, address.operation)]
    paths: dict[str, Json] = {}
    for address in served:
        paths.setdefault(address.path, {})[address.verb.lower()] = _operation(address)
    paths |= {
        "/healthz": _operator("healthz", "Whether the process lives.", media.JSON, _ALIVE),
        "/readyz": _operator(
            "readyz", "Whether every model can answer; 503 says why not.", media.JSON, _READY
        ),
        "/metrics": _operator("metrics", "Prometheus's text format.", "text/plain", {"type": "string"}),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "whybox",
            "version": version("whybox"),
            "description": "Why this box? Explains what an object detector looked at.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {
                **schema.schemas([a.request for a in served], [a.response for a in served]),
                "Problem": _problem(),
            },
            "parameters": {
                name: {"name": name, "in": "header", "required": False, "schema": header}
                for name, header in _HEADERS.items()
            },
            "responses": {str(status): _refusal(status) for status in _statuses()},
        },
    }


def _operation(address: Address) -> Json:
    operation: Json = {
        "operationId": address.operation,
        "summary": address.summary,
        "parameters": [
            *({"$ref": f"#/components/parameters/{name}"} for name in _HEADERS),
            *(_parameter("path", name, {"type": "string"}) for name in address.fields),
            *(
                _parameter("query", name, field)
                for name, field in _query_fields(address.request)
                if name not in address.fields
            ),
        ],
        "responses": {"200": _success(address), **_refusals()},
    }
    if address.verb == "POST":
        operation["requestBody"] = _body(address)
        operation["description"] = (
            "The query parameters go with a body that is the picture itself; "
            "a method's parameters are then written `params.NAME=value`."
        )
    return operation


def _body(address: Address) -> Json:
    message = schema.reference(address.request)
    binary = {"type": "string", "format": "binary"}
    return {
        "required": True,
        "content": {
            media.MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": binary, "request": message},
                    "additionalProperties": False,
                },
                "encoding": {"request": {"contentType": media.JSON}},
            },
            media.JSON: {"schema": message},
            media.PROTOBUF: {"schema": binary},
            "image/*": {"schema": binary},
            media.OCTETS: {"schema": binary},
        },
    }


def _success(address: Address) -> Json:
    content: Json = {
        media.JSON: {"schema": schema.reference(address.response)},
        media.PROTOBUF: {"schema": {"type": "string", "format": "binary"}},
    }
    if address.png:
        content[media.PNG] = {"schema": {"type": "string", "format": "binary"}}
    return {"description": "The answer.", "headers": _answer_headers(), "content": content}


def _operator(name: str, summary: str, kind: str, answer: Json) -> Json:
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in _HEADERS],
            "responses": {
                "200": {
                    "description": summary,
                    "headers": _answer_headers(),
                    "content": {kind: {"schema": answer}},
                },
                **_refusals(),
            },
        }
    }


def _parameter(place: str, name: str, field: Json) -> Json:
    return {"name": name, "in": place, "required": place == "path", "schema": field}


def _query_fields(descriptor: Descriptor, prefix: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the fields that can stand in a query string, by dotted name."""
    for field in descriptor.fields:
        name = prefix + field.name
        if field.message_type is None:
            if field.type != field.TYPE_BYTES:
                yield name, schema.field_schema(field)
        elif not field.is_repeated and not field.message_type.full_name.startswith("google.protobuf."):
            yield from _query_fields(field.message_type, name + ".")


def _statuses() -> list[int]:
    return sorted({row.http_status for row in ERRORS.values()})


def _refusals() -> Json:
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in _statuses()}


def _refusal(status: int) -> Json:
    rows = [row for row in ERRORS.values() if row.http_status == status]
    return {
        "description": "; ".join(f"{row.name}: {row.title}" for row in rows),
        "headers": _answer_headers(),
        "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _problem() -> Json:
    text = {"type": "string"}
    return {
        "type": "object",
        "description": "What went wrong, as RFC 9457 has it.",
        "required": ["type", "title", "status", "detail", "request_id"],
        "properties": {
            "type": {"type": "string", "format": "uri", "enum": [type_uri(name) for name in ERRORS]},
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "field": {"type": "string", "description": "Path of the field at fault."},
            "expected": text,
            "got": text,
            "request_id": text,
        },
    }


def _answer_headers() -> Json:
    return {REQUEST_ID: {"schema": _HEADERS[REQUEST_ID]}}
