"""From arguments to messages to typed results, without any transport."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

from whybox_client import AsyncClient, Client, GroundTruth, Measure, Nms, flows, wire
from whybox_client.errors import ConnectionFailedError, InvalidAnswerError
from whybox_client.floats import shortest
from whybox_client.images import encode
from whybox_client.transports.lines import Line
from whybox_client.wire import Call, Reply
from whybox_proto import rle
from whybox_proto.v1 import explainer_pb2, types_pb2


@dataclass
class Canned:
    """A transport that answers from a function and remembers what it was asked."""

    answer: Callable[[Call], Message]
    calls: list[tuple[Call, float]] = field(default_factory=list)

    def send(self, call: Call, timeout: float, line: Line | None = None) -> Reply:  # noqa: ARG002
        self.calls.append((call, timeout))
        return Reply(self.answer(call).SerializeToString(), call.request_id)

    def stream(self, call: Call, timeout: float, line: Line | None = None) -> Iterator[Reply]:
        yield self.send(call, timeout, line)

    def close(self) -> None:
        self.calls.clear()


class AsyncCanned(Canned):
    async def send(self, call: Call, timeout: float) -> Reply:  # type: ignore[override]
        return super().send(call, timeout)

    async def stream(self, call: Call, timeout: float) -> AsyncGenerator[Reply, None]:  # type: ignore[override]
        yield super().send(call, timeout)

    async def aclose(self) -> None:
        self.close()


def client_of(transport: Canned) -> Client:
    client = Client("http://127.0.0.1:1", timeout=9)
    client._transport.close()
    client._transport = transport
    return client


def set_fields(message: Message, prefix: str = "") -> set[str]:
    """Paths of the fields that are set; of the request's own messages, those inside."""
    paths = set()
    for descriptor, value in message.ListFields():
        if descriptor.name in ("select", "nms", "output", "budget"):
            paths |= set_fields(value, f"{descriptor.name}.")
        else:
            paths.add(prefix + descriptor.name)
    return paths


def all_fields(descriptor: Any, prefix: str = "") -> set[str]:
    paths = set()
    for f in descriptor.fields:
        if f.name in ("select", "nms", "output", "budget"):
            paths |= all_fields(f.message_type, f"{f.name}.")
        else:
            paths.add(prefix + f.name)
    return paths


EVERYTHING: dict[str, Any] = {
    "score_threshold": 0.25,
    "max_detections": 7,
    "labels": ["stop", "yield"],
    "indices": [0, 2],
    "box": (1, 2, 3, 4.5),
    "expected": ((10, 10, 20, 20.5), "stop"),
    "nms": Nms("soft", 0.5, 0.8, 0.2, 0.4, 0.05),
    "explain_suppressed": True,
    "model_version": "2.0",
}
EXPLAIN_ONLY: dict[str, Any] = {
    "method": "odam",
    "targets": ["class", "x1"],
    "layer": ["fpn", "layer2"],
    "params": {"sigma": 2, "smooth": True, "mode": "relu", "share": 0.5},
    "seed": 3,
    "seconds": 2.5,
    "samples": 100,
    "evaluate": True,
    "output_size": "image",
    "encoding": "f32",
    "max_side": 128,
}


def test_every_served_field_of_the_contract_can_be_set_and_no_other() -> None:
    transport = Canned(lambda _: explainer_pb2.ExplainResponse())
    client = client_of(transport)
    client.detect("m", b"image", **EVERYTHING)
    client.explain("m", b"image", **EVERYTHING, **EXPLAIN_ONLY)
    detect, explain = (call.request for call, _ in transport.calls)
    assert set_fields(detect) == all_fields(explainer_pb2.DetectRequest.DESCRIPTOR)
    assert set_fields(explain) == all_fields(explainer_pb2.ExplainRequest.DESCRIPTOR)


def test_values_arrive_where_they_belong() -> None:
    transport = Canned(lambda _: explainer_pb2.ExplainResponse())
    client_of(transport).explain("m", b"image", **EVERYTHING, **EXPLAIN_ONLY)
    request = transport.calls[0][0].request
    expected = explainer_pb2.ExplainRequest(
        model="m",
        model_version="2.0",
        image=b"image",
        select=types_pb2.Select(
            score_threshold=0.25,
            max_detections=7,
            labels=["stop", "yield"],
            indices=[0, 2],
            box=[1, 2, 3, 4.5],
            expected=types_pb2.Expected(box=[10, 10, 20, 20.5], label="stop"),
        ),
        nms=types_pb2.Nms(
            kind="soft",
            iou_threshold=0.5,
            corr_high=0.8,
            corr_low=0.2,
            sigma=0.4,
            final_threshold=0.05,
            explain_suppressed=True,
        ),
        method="odam",
        targets=["class", "x1"],
        layer="fpn+layer2",
        seed=3,
        budget=types_pb2.Budget(seconds=2.5, samples=100),
        evaluate=True,
        output=types_pb2.Output(size="image", encoding="f32", max_side=128),
    )
    expected.params.update({"sigma": 2, "smooth": True, "mode": "relu", "share": 0.5})
    assert request == expected


def png(width: int = 6, height: int = 4) -> bytes:
    return encode(np.zeros((height, width, 3), np.uint8))


def test_ground_truth_is_sent_as_coco_has_it() -> None:
    transport = Canned(lambda _: explainer_pb2.EvaluateResponse())
    mask = np.zeros((4, 6), bool)
    mask[1:3, 2:5] = True
    truth = [
        GroundTruth("stop", (1, 1, 5, 3.5), evidence=mask),
        GroundTruth("yield", mask=mask),
        GroundTruth("yield", mask=rle.encode(mask)),
    ]
    client_of(transport).evaluate("m", png(), truth=truth, measures="iof", labels="stop", seconds=3)
    ((call, seconds),) = transport.calls
    assert (call.operation, seconds) == (wire.EVALUATE, 9 + 3)
    request: Any = call.request
    assert (request.explain.model, list(request.explain.select.labels)) == ("m", ["stop"])
    assert list(request.measures) == ["iof"]
    assert (request.truth.width, request.truth.height) == (6, 4)
    first, second, third = request.truth.objects
    assert (list(first.box), first.mask) == ([1, 1, 5, 3.5], "")
    np.testing.assert_array_equal(rle.decode(first.evidence, 4, 6), mask)
    assert list(second.box) == list(third.box) == [2, 1, 5, 3]
    assert second.mask == third.mask == first.evidence


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (GroundTruth("stop"), r"truth\[0\]: an object has a box, or a mask"),
        (GroundTruth("stop", mask=np.zeros((4, 6), bool)), r"truth\[0\]: the mask is empty"),
        (GroundTruth("stop", mask=np.ones((6, 4), bool)), r"\(4, 6\); got \(6, 4\)"),
        (GroundTruth("stop", mask="no counts"), "compressed counts"),
    ],
)
def test_ground_truth_that_cannot_be_sent_is_named(thing: GroundTruth, says: str) -> None:
    transport = Canned(lambda _: explainer_pb2.EvaluateResponse())
    with pytest.raises(ValueError, match=says):
        client_of(transport).evaluate("m", png(), truth=[thing])
    assert transport.calls == []


def test_time_to_work_comes_on_top_of_the_clients_own() -> None:
    transport = Canned(lambda _: explainer_pb2.ExplainResponse())
    client = client_of(transport)
    client.explain("m", b"x", seconds=120)
    client.explain("m", b"x", seconds=120, timeout=30)
    list(client.explain_stream("m", b"x", seconds=120))
    for cannot_be in (0, -1, float("nan"), float("inf")):
        client.explain("m", b"x", seconds=cannot_be)  # for the service to refuse
    assert [seconds for _, seconds in transport.calls] == [129, 30, 129, 9, 9, 9, 9]


def test_what_is_not_said_is_not_sent() -> None:
    transport = Canned(lambda _: explainer_pb2.ExplainResponse())
    client_of(transport).explain("m", b"image", score_threshold=0.0, nms="iou")
    request = transport.calls[0][0].request
    expected = explainer_pb2.ExplainRequest(model="m", image=b"image", nms=types_pb2.Nms(kind="iou"))
    expected.select.score_threshold = 0.0
    expected.output.SetInParent()
    assert set_fields(request) == set_fields(expected)
    assert request.select.HasField("score_threshold")  # type: ignore[attr-defined]


def test_one_name_or_number_is_a_list_of_one() -> None:
    transport = Canned(lambda _: explainer_pb2.ExplainResponse())
    client_of(transport).explain("m", b"image", targets="class:stop", labels="stop", indices=2)
    request: Any = transport.calls[0][0].request
    assert (list(request.targets), list(request.select.labels), list(request.select.indices)) == (
        ["class:stop"],
        ["stop"],
        [2],
    )


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"max_detections": -1}, ValueError, "max_detections: "),
        ({"indices": [-1]}, ValueError, "indices: "),
        ({"seed": 2**32}, ValueError, "seed: "),
        ({"labels": [7]}, TypeError, "labels: "),
        ({"score_threshold": "high"}, TypeError, "score_threshold: "),
        ({"params": {"sigma": object()}}, ValueError, r"params\['sigma'\] is a number"),
        ({"samples": -1}, ValueError, "samples: "),
        ({"seconds": "long"}, TypeError, "seconds: "),
        ({"expected": "stop"}, ValueError, "expected is a pair"),
        ({"expected": ([0, 0, 1, 1], 3)}, TypeError, "expected is a pair"),
        ({"timeout": 0}, ValueError, "timeout is a number of seconds above 0"),
    ],
)
def test_an_argument_that_cannot_be_sent_is_named(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    transport = Canned(lambda _: explainer_pb2.ExplainResponse())
    with pytest.raises(error, match=says):
        client_of(transport).explain("m", b"image", **arguments)
    assert transport.calls == []


def test_models_are_read_page_by_page() -> None:
    def answer(call: Call) -> Message:
        request = call.request
        assert isinstance(request, explainer_pb2.ListModelsRequest)
        first = not request.page_token
        return explainer_pb2.ListModelsResponse(
            models=[types_pb2.Model(name="a" if first else "b")], next_page_token="more" if first else ""
        )

    transport = Canned(answer)
    assert [model.name for model in client_of(transport).models()] == ["a", "b"]
    assert len(transport.calls) == 2


def test_a_description_is_typed() -> None:
    method = types_pb2.Method(
        name="odam", targets=["class"], layers=["fpn"], default_layer="fpn", description="Gradients."
    )
    for name, kind, default in (("n", "integer", 3), ("x", "number", 0.5), ("m", "string", "relu")):
        parameter = method.params.add(name=name, type=kind)
        if isinstance(default, str):
            parameter.default_value.string_value = default
        else:
            parameter.default_value.number_value = default
    method.params.add(name="free", type="number", minimum=0, choices=[])
    method.sampling = method.combines_layers = True
    message = types_pb2.Model(
        name="signs",
        labels=["stop"],
        score_threshold=0.3,
        methods=[method],
        layers=[types_pb2.Layer(name="fpn", kind="level", channels=64), types_pb2.Layer(name="s", stride=8)],
        nms=[types_pb2.Nms(kind="iou", iou_threshold=0.6)],
        default_nms="iou",
        ready=True,
        measures=[types_pb2.Measure(name="deletion", protocol="Fill.", better="lower", needs="mask")],
    )
    model = client_of(Canned(lambda _: message)).model("signs")
    assert (model.name, model.labels, model.score_threshold, model.ready) == ("signs", ("stop",), 0.3, True)
    assert [p.default for p in model.methods[0].params] == [3, 0.5, "relu", None]
    assert isinstance(model.methods[0].params[0].default, int)
    assert (model.methods[0].params[3].minimum, model.methods[0].params[3].maximum) == (0, None)
    assert [layer.stride for layer in model.layers] == [None, 8]
    assert model.nms == (Nms("iou", iou_threshold=0.6),)
    assert (model.methods[0].sampling, model.methods[0].combines_layers) == (True, True)
    assert model.measures == (Measure("deletion", "Fill.", "lower", "mask"),)
    assert hash(model) == hash(client_of(Canned(lambda _: message)).model("signs"))


def test_timeouts_and_request_ids_travel_with_the_call() -> None:
    transport = Canned(lambda _: explainer_pb2.DetectResponse())
    client = client_of(transport)
    assert client.detect("m", b"x", timeout=2.5, request_id="mine").request_id == "mine"
    client.detect("m", b"x")
    client.detect("m", b"x")
    (first, first_timeout), (second, second_timeout), (third, _) = transport.calls
    assert (first.request_id, first_timeout, second_timeout) == ("mine", 2.5, 9)
    assert second.request_id != third.request_id != ""


def test_ready_is_false_where_nothing_answers() -> None:
    def refuse(call: Call) -> Message:
        raise ConnectionFailedError("refused", request_id=call.request_id)

    assert client_of(Canned(refuse)).ready() is False
    assert client_of(Canned(lambda _: explainer_pb2.DetectResponse())).ready() is True


def test_an_answer_that_is_no_message_is_an_error() -> None:
    class Garbage(Canned):
        def send(self, call: Call, timeout: float, line: Line | None = None) -> Reply:  # noqa: ARG002  # noqa: ARG002
            return Reply(b"\xff\xff\xff", "id")

    with pytest.raises(InvalidAnswerError, match="no DetectResponse"):
        client_of(Garbage(lambda _: explainer_pb2.DetectResponse())).detect("m", b"x")


def test_an_answer_that_contradicts_itself_is_an_error() -> None:
    broken = (
        explainer_pb2.ExplainResponse(detections=[types_pb2.Detection(box=[1, 2, 3])]),
        explainer_pb2.ExplainResponse(heat_maps=[types_pb2.HeatMap(region=[0, 0, 1, 1])]),
    )
    for message in broken:
        with pytest.raises(InvalidAnswerError):
            client_of(Canned(lambda _, message=message: message)).explain("m", b"x")  # type: ignore[misc]


def test_both_clients_have_the_same_methods_and_signatures() -> None:
    for name in ("models", "model", "detect", "explain", "evaluate", "ready"):
        blocking, awaited = getattr(Client, name), getattr(AsyncClient, name)
        flow = inspect.signature(getattr(flows, name))
        assert list(inspect.signature(blocking).parameters)[1:] == list(flow.parameters)
        assert inspect.signature(blocking) == inspect.signature(awaited)
        assert blocking.__doc__ == awaited.__doc__ == getattr(flows, name).__doc__
        assert inspect.iscoroutinefunction(awaited)
    assert Client.explain_stream.__doc__ == flows.explain_stream.__doc__
    for method in (Client.explain_stream, AsyncClient.explain_stream):
        assert inspect.signature(method).return_annotation == "Iterator[Explanation]"


def test_the_async_client_does_the_same() -> None:
    response = explainer_pb2.DetectResponse(
        model="m", detections=[types_pb2.Detection(box=[0, 0, 1, 1], label="stop", score=0.9)]
    )
    transport = AsyncCanned(lambda _: response)

    async def ask() -> object:
        async with AsyncClient("http://127.0.0.1:1") as client:
            await client._transport.aclose()
            client._transport = transport
            return await client.detect("m", b"x", request_id="a")

    assert asyncio.run(ask()) == client_of(Canned(lambda _: response)).detect("m", b"x", request_id="a")


def test_operations_are_those_of_the_contract() -> None:
    service = explainer_pb2.DESCRIPTOR.services_by_name["Explainer"]
    operations = [value for value in vars(wire).values() if isinstance(value, wire.Operation)]
    for operation in operations:
        if operation is wire.READY:
            continue
        assert operation.rpc.rpartition("/")[0] == f"/{service.full_name}"
        assert operation.rpc.rpartition("/")[2] in service.methods_by_name


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://host", "http://", "grpc://host", "grpc://host:1/path"]
)
def test_a_url_that_names_no_transport_is_refused(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="URL is"):
            kind(url)


def test_a_client_shows_where_it_asks() -> None:
    with Client("grpc://127.0.0.1:1", timeout=3) as client:
        assert repr(client) == "Client('grpc://127.0.0.1:1', timeout=3)"
    with pytest.raises(ValueError, match="above 0"):
        Client(timeout=0)


@pytest.mark.parametrize("value", [0.98, 0.1, 123.456, 1e-8, 16777216.0, 0.333333343, -2.5, 0.0])
def test_floats_are_shown_as_they_were_meant(value: float) -> None:
    import struct

    as_sent = struct.unpack("<f", struct.pack("<f", value))[0]
    assert struct.pack("<f", shortest(as_sent)) == struct.pack("<f", value)
    assert len(repr(shortest(as_sent))) <= len(repr(value))
    assert shortest(float("inf")) == float("inf")
