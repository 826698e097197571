"""The OpenAPI description, made from the protobuf descriptors and the table of addresses."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from google.protobuf.descriptor import Descriptor

from whybox_proto.errors import ERRORS, PROBLEM_JSON, type_uri
from whybox_service import messages
from whybox_service.access import OPEN_OPERATIONS
from whybox_service.calls import MAX_REQUEST_ID
from whybox_service.operations import Operations
from whybox_service.rest import kserve, media, schema
from whybox_service.rest.answers import CREATE_INVERSION, LAST_EVENT_ID, NO_CONTENT
from whybox_service.rest.events import ERROR, PARTIAL, RESULT
from whybox_service.rest.exchange import REQUEST_ID, REQUEST_TIMEOUT
from whybox_service.rest.routes import ADDRESSES, INVERSION_IMAGE, Address

Json = dict[str, Any]

_KEY = "apiKey"

_HEADERS: dict[str, Json] = {
    REQUEST_ID: {"type": "string", "minLength": 1, "maxLength": MAX_REQUEST_ID, "pattern": "^[ -~]+$"},
    REQUEST_TIMEOUT: {"type": "number", "exclusiveMinimum": 0, "description": "Seconds."},
}
_RETRY_AFTER: Json = {
    "schema": {"type": "integer", "minimum": 0},
    "description": "Seconds after which asking again is worth while.",
}
_EVENT_ID: Json = {"type": "string", "pattern": "^[0-9]{1,9}$", "description": "Go on after this event."}
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
        # Whether there are keys is the operator's choice, of which this page knows nothing.
        "security": [{_KEY: []}, {}],
        "components": {
            "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer", "description": "An API key."}},
            "schemas": {
                **schema.schemas([a.request for a in served], [a.response for a in served]),
                "Problem": _problem(),
            },
            "parameters": {
                name: {"name": name, "in": "header", "required": False, "schema": header}
                for name, header in (*_HEADERS.items(), (LAST_EVENT_ID, _EVENT_ID))
            },
            "responses": {str(status): _refusal(status) for status in _statuses()},
        },
    }


def _operation(address: Address) -> Json:
    operation: Json = {
        "operationId": _operation_id(address),
        "summary": address.summary,
        "parameters": [
            *({"$ref": f"#/components/parameters/{name}"} for name in _HEADERS),
            *(_parameter("path", name, {"type": "string"}) for name in address.fields),
            *([{"$ref": "#/components/parameters/" + LAST_EVENT_ID}] * (address.kind == media.EVENT_STREAM)),
            *(
                _parameter("query", name, field)
                for name, field in _query_fields(address.request)
                if name not in _in_path(address)
            ),
        ],
        "responses": {str(address.status): _success(address), **_refusals()},
    }
    if address.kind == media.EVENT_STREAM:
        operation["responses"]["204"] = {
            "description": "It had ended with the event before.",
            "headers": _answer_headers(),
        }
    if address.verb == "POST" and "image" in messages.subject_fields(address.request):
        operation["requestBody"] = _body(address)
        operation["description"] = (
            "The query parameters go with a body that is the picture itself; "
            "a method's parameters are then written `params.NAME=value`."
        )
    elif address.verb == "POST":
        operation["requestBody"] = _body_without_picture(address)
    return operation


def _in_path(address: Address) -> list[str]:
    """Return the paths of the request's fields that stand in an address."""
    return [messages.path_in(address.request, name) for name in address.fields]


def _operation_id(address: Address) -> str:
    """Return the operation's name; of several addresses of one rpc the later ones go by their own verb."""
    if address.kind == media.PNG:
        return INVERSION_IMAGE
    first = next(other for other in ADDRESSES if other.rpc == address.rpc)
    return address.operation if address is first else address.path.rpartition(":")[2]


def _instance(address: Address) -> Json:
    """Return the schema of an instance of KServe V1: the request, its picture wrapped or not."""
    described = schema.schemas([address.request], [])[address.request.name]
    properties = described["properties"]
    if "image" not in properties:
        return described
    wrapped = {
        "type": "object",
        "required": ["b64"],
        "properties": {"b64": properties["image"]},
        "additionalProperties": False,
    }
    return {**described, "properties": {**properties, "image": {"oneOf": [properties["image"], wrapped]}}}


def _with_instances(plain: Json, name: str, item: Json, address: Address) -> Json:
    """Return the schema of a plain body, or that and the one of KServe V1 where the address has both."""
    if not address.instances:
        return plain
    several = {
        "type": "object",
        "required": [name],
        "properties": {
            name: {"type": "array", "minItems": 1, "maxItems": kserve.MAX_INSTANCES, "items": item}
        },
        "additionalProperties": False,
    }
    return {"oneOf": [plain, several]}


def _body(address: Address) -> Json:
    message = schema.reference(address.request)
    binary = {"type": "string", "format": "binary"}
    return {
        "required": True,
        "content": {
            media.MULTIPART: {
                "schema": {
                    "type": "object",
                    "required": ["request" if address.rpc == CREATE_INVERSION else "image"],
                    "properties": {"image": binary, "request": message},
                    "additionalProperties": False,
                },
                "encoding": {"request": {"contentType": media.JSON}},
            },
            media.JSON: {"schema": _with_instances(message, kserve.INSTANCES, _instance(address), address)},
            media.PROTOBUF: {"schema": binary},
            "image/*": {"schema": binary},
            media.OCTETS: {"schema": binary},
        },
    }


def _body_without_picture(address: Address) -> Json:
    return {
        "required": False,
        "content": {
            media.JSON: {"schema": schema.reference(address.request)},
            media.PROTOBUF: {"schema": {"type": "string", "format": "binary"}},
        },
    }


def _success(address: Address) -> Json:
    if address.status == NO_CONTENT:
        return {"description": "Done.", "headers": _answer_headers()}
    if address.kind:
        return _of_one_kind(address)
    answer = schema.reference(address.response)
    content: Json = {
        media.JSON: {"schema": _with_instances(answer, address.instances, answer, address)},
        media.PROTOBUF: {"schema": {"type": "string", "format": "binary"}},
    }
    if address.png:
        content[media.PNG] = {"schema": {"type": "string", "format": "binary"}}
    if address.stream:
        content[media.EVENT_STREAM] = {
            "schema": {
                "type": "string",
                "description": f"Events, each with a number (`id`) and JSON (`data`). `{PARTIAL}`: "
                f"the answer so far. `{RESULT}`: all of it, the last event. `{ERROR}`: a Problem, likewise "
                "the last. Lines that begin with a colon say nothing.",
            },
            "example": 'id: 1\nevent: partial\ndata: {"detections": [], "heat_maps": []}\n\n',
        }
    headers = _answer_headers()
    if address.rpc == CREATE_INVERSION:
        headers["Location"] = {"schema": {"type": "string"}, "description": "Address of the inversion."}
    return {"description": "The answer.", "headers": headers, "content": content}


def _of_one_kind(address: Address) -> Json:
    if address.kind == media.PNG:
        described: Json = {"schema": {"type": "string", "format": "binary"}}
    else:
        described = {
            "schema": {
                "type": "string",
                "description": f"Events, each with an `id` to go on after (`{LAST_EVENT_ID}`) and an "
                f"InversionEvent as JSON (`data`). `{PARTIAL}`: it goes on. `{RESULT}`: it has ended, the "
                f"last event. `{ERROR}`: a Problem, and the last. A line after a colon says nothing.",
            },
            "example": 'id: 3\nevent: partial\ndata: {"id": "3", "inversion": {"state": "running"}}\n\n',
        }
    return {
        "description": address.summary,
        "headers": _answer_headers(),
        "content": {address.kind: described},
    }


def _operator(name: str, summary: str, kind: str, answer: Json) -> Json:
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            **({"security": []} if name in OPEN_OPERATIONS else {}),
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
        "headers": _answer_headers()
        | ({"Retry-After": _RETRY_AFTER} if any(r.retryable for r in rows) else {}),
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
            "retry_after_seconds": {
                "type": "number",
                "minimum": 0,
                "description": "After which asking again is worth while.",
            },
        },
    }


def _answer_headers() -> Json:
    return {REQUEST_ID: {"schema": _HEADERS[REQUEST_ID]}}
