"""The table of addresses: which rpc of `whybox.v1.Explainer` each one is.

The same table makes the routes and the OpenAPI description.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor

from whybox_proto.errors import ContractError
from whybox_proto.v1 import explainer_pb2
from whybox_service.operations import operation_name
from whybox_service.rest import media

INVERSIONS = "inversions/"
# The operation of an address without an rpc of its own.
INVERSION_IMAGE = "inversion_image"

SERVICE = explainer_pb2.DESCRIPTOR.services_by_name["Explainer"]


@dataclass(frozen=True)
class Address:
    """One verb at one path.

    Attributes:
        verb: HTTP verb.
        path: with the names of the request's fields that stand in it in braces.
        rpc: name of the rpc; its request and answer are what this address takes and gives.
        summary: what it does, in a line.
        png: whether the answer can be had as a picture.
        stream: the rpc that gives the same answer as it grows, as server-sent events; empty for none.
        instances: member that answers a body of KServe V1; empty where none is read.
        kind: the one media type of the answer, where it is neither JSON nor protobuf; empty otherwise.
        status: of an answer.
        collection: what stands before a name in the path in the message's field of that name, with a slash.
    """

    verb: str
    path: str
    rpc: str
    summary: str
    png: bool = False
    stream: str = ""
    instances: str = ""
    kind: str = ""
    status: int = 200
    collection: str = ""

    @property
    def request(self) -> Descriptor:
        """The message that is asked with."""
        return SERVICE.methods_by_name[self.rpc].input_type

    @property
    def response(self) -> Descriptor:
        """The message that answers."""
        return SERVICE.methods_by_name[self.rpc].output_type

    @property
    def fields(self) -> list[str]:
        """The names in the path."""
        return re.findall(r"{(\w+)}", self.path)

    @property
    def offers(self) -> list[str]:
        """The media types that the answer can be had in, the default first."""
        if self.kind:
            return [self.kind]
        further = [media.PNG] * self.png + [media.EVENT_STREAM] * bool(self.stream)
        return [media.JSON, media.PROTOBUF, *further]

    @property
    def operation(self) -> str:
        """The rpc's name in snake case: a metric's label, and the method of `Operations`."""
        return operation_name(self.rpc)

    def operation_for(self, accept: str) -> str:
        """Return the name of what is asked for with an Accept header: a stream is an operation of its own."""
        if self.kind:
            return INVERSION_IMAGE if self.kind == media.PNG else self.operation
        try:
            kind = media.choose(accept, self.offers)
        except ContractError:
            return self.operation
        return operation_name(self.stream) if kind == media.EVENT_STREAM else self.operation


ADDRESSES = (
    Address("GET", "/v1/models", "ListModels", "List the models."),
    Address("GET", "/v1/models/{model}", "GetModel", "Describe a model and the state of its workers."),
    Address("POST", "/v1/models/{model}:detect", "Detect", "Find objects in a picture."),
    Address(
        "POST",
        "/v1/models/{model}:explain",
        "Explain",
        "Show what the detector looked at.",
        png=True,
        stream="ExplainStream",
        instances="explanations",
    ),
    Address(
        "POST",
        "/v1/models/{model}:predict",
        "Detect",
        "Find objects, at the address that KServe V1 gives it.",
        instances="predictions",
    ),
    Address("POST", "/v1/models/{model}:evaluate", "Evaluate", "Measure how faithful the maps are."),
    Address("GET", "/v1/inversions", "ListInversions", "List layout inversions."),
    Address("POST", "/v1/inversions", "CreateInversion", "Start a layout inversion.", status=202),
    Address(
        "GET",
        "/v1/inversions/{name}",
        "GetInversion",
        "Look at a layout inversion.",
        collection=INVERSIONS,
    ),
    Address(
        "DELETE",
        "/v1/inversions/{name}",
        "DeleteInversion",
        "Forget a layout inversion.",
        status=204,
        collection=INVERSIONS,
    ),
    Address(
        "POST",
        "/v1/inversions/{name}:cancel",
        "CancelInversion",
        "Stop a layout inversion.",
        collection=INVERSIONS,
    ),
    Address(
        "GET",
        "/v1/inversions/{name}/image",
        "GetInversion",
        "The latest picture of a layout inversion.",
        kind=media.PNG,
        collection=INVERSIONS,
    ),
    Address(
        "GET",
        "/v1/inversions/{name}/events",
        "WatchInversion",
        "Follow a layout inversion.",
        kind=media.EVENT_STREAM,
        collection=INVERSIONS,
    ),
)
