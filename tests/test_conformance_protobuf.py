"""Whatever bytes come as protobuf, an answer or an error of the caller goes back: never a 5xx."""

from __future__ import annotations

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from builders import encoded, random_image, write_recipe
from conftest import PATIENCE_SECONDS, Live
from gateway_calls import Outcome, over_grpc, rest_outcome
from test_pictures_live import worker_pids
from whybox.engine import Engine
from whybox.recipe import read_recipe
from whybox.torchserve import codec
from whybox_proto.errors import ERRORS, ContractError
from whybox_proto.v1 import explainer_pb2, worker_pb2
from whybox_service.messages import MAX_BYTES_BESIDE, parse
from wire_messages import field, nasty, requests, wire

KINDS = {"Detect": explainer_pb2.DetectRequest, "Explain": explainer_pb2.ExplainRequest}
MODEL = "retinanet-random"
IMAGE = encoded(random_image(48, 64), "JPEG")
OURS = {name for name, row in ERRORS.items() if row.http_status >= 500} - {"not_implemented"}
NASTY = nasty()

SAME_EXAMPLES = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = write_recipe(tmp_path_factory.mktemp("recipe"), "retinanet")
    recipe = read_recipe(path)
    assert recipe.weights is not None
    return Engine.load(recipe, path.parent / recipe.weights)


def worker(engine: Engine, body: bytes) -> worker_pb2.WorkerReply:
    """What a worker answers to a body, as TorchServe hands it over."""
    call = codec.read({"body": bytearray(body)}, {"content-type": codec.PROTOBUF})
    replies = engine.answer([call.request] if call.request is not None else [])
    answer = call.write(replies[0] if replies else None)
    assert isinstance(answer.body, bytes)
    return worker_pb2.WorkerReply.FromString(answer.body)


def check(reply: worker_pb2.WorkerReply) -> None:
    """A result, or an error that is not ours."""
    result = reply.WhichOneof("result")
    assert result is not None
    if result == "error":
        assert reply.error.type in ERRORS
        assert reply.error.type not in OURS - {"deadline_exceeded"}, reply.error
        assert reply.error.message


@settings(SAME_EXAMPLES, max_examples=300)
@given(body=st.binary(max_size=300) | wire(depth=5))
def test_a_worker_survives_any_bytes(engine: Engine, body: bytes) -> None:
    check(worker(engine, body))


@pytest.mark.parametrize("rpc", KINDS)
@settings(SAME_EXAMPLES, max_examples=200)
@given(data=st.data())
def test_a_worker_survives_any_request(engine: Engine, rpc: str, data: st.DataObject) -> None:
    body = data.draw(requests(KINDS[rpc], IMAGE, MODEL))
    check(worker(engine, field({"Detect": 2, "Explain": 3}[rpc], 2, body)))


@pytest.mark.parametrize("name", NASTY)
def test_a_worker_answers_what_is_nasty(engine: Engine, name: str) -> None:
    extra, type = NASTY[name]
    reply = worker(engine, field(3, 2, good(MODEL) + extra))
    assert reply.error.type == type, reply.error


@pytest.mark.parametrize("rpc", KINDS)
@settings(SAME_EXAMPLES, max_examples=60)
@given(data=st.data())
def test_both_transports_survive_any_request(live: Live, rpc: str, data: st.DataObject) -> None:
    agree(live, rpc, data.draw(requests(KINDS[rpc], IMAGE, live.model)))


@pytest.mark.parametrize("name", NASTY)
def test_both_transports_answer_what_is_nasty(live: Live, name: str) -> None:
    extra, type = NASTY[name]
    if len(extra) > MAX_BYTES_BESIDE:
        type = "request_too_large"
    assert agree(live, "Explain", good(live.model) + extra).error.get("type", "") == type


def test_no_worker_was_lost(live: Live) -> None:
    before = worker_pids(live)
    for name in NASTY:
        agree(live, "Explain", good(live.model) + NASTY[name][0])
    assert worker_pids(live) == before
    assert all(psutil.pid_exists(pid) for pid in before)


@settings(SAME_EXAMPLES, max_examples=300)
@given(body=wire(depth=4), image=st.binary(max_size=40))
def test_a_large_body_is_read_as_a_small_one_is(body: bytes, image: bytes) -> None:
    def read(whole: bytes) -> explainer_pb2.ExplainRequest | str:
        request = explainer_pb2.ExplainRequest()
        try:
            parse(whole, request)
        except ContractError as error:
            return error.type
        return request

    tail = body + field(3, 2, image)
    assert read(field(3, 2, bytes(MAX_BYTES_BESIDE)) + tail) == read(tail)


def good(model: str) -> bytes:
    """A request for one map, in binary."""
    request = explainer_pb2.ExplainRequest(model=model, image=IMAGE)
    request.select.max_detections = 1
    request.select.score_threshold = 0
    return request.SerializeToString()


def agree(live: Live, rpc: str, body: bytes) -> Outcome:
    """Send a body over both transports, which must say the same, and neither that it is broken."""
    response = httpx.post(
        f"{live.rest}/v1/models/{live.model}:{rpc.lower()}",
        content=body,
        headers={"Content-Type": "application/x-protobuf"},
        timeout=PATIENCE_SECONDS,
        verify=False,
    )
    rest = rest_outcome(response, rpc)
    grpc = over_grpc(live.target, rpc, body)
    assert rest.error.get("type") not in OURS
    assert grpc.error.get("type") not in OURS | {"INTERNAL", "UNKNOWN", "UNAVAILABLE"}
    if _names_the_model(rpc, body, live.model):
        assert rest == grpc
    return rest


def _names_the_model(rpc: str, body: bytes, model: str) -> bool:
    """Over REST the path names the model; a body that names none or another differs only there."""
    try:
        request = KINDS[rpc].FromString(body)
    except Exception:
        return True
    return bool(request.model == model)
