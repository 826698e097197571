"""The HTTP application: the contract's addresses, and those for operators."""

from __future__ import annotations

from functools import cache

from fastapi import FastAPI
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from whybox_proto.errors import ContractError
from whybox_service.calls import Call
from whybox_service.catalogue import Catalogue
from whybox_service.intake import RETRY_AFTER_SECONDS, Intake
from whybox_service.metrics import Metrics, Observation
from whybox_service.operations import Operations
from whybox_service.rest import media, openapi, playground
from whybox_service.rest.answers import Answers
from whybox_service.rest.exchange import Answer, Endpoint, Exchange, Operation, problem
from whybox_service.rest.json_out import to_json
from whybox_service.rest.routes import ADDRESSES, Address
from whybox_service.settings import Settings

METRICS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


class _Name(Convertor[str]):
    """A name in a path: no slash, and no colon, which begins a verb such as ``:detect``."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("name", _Name())


def create(
    settings: Settings, operations: Operations, catalogue: Catalogue, metrics: Metrics, intake: Intake
) -> FastAPI:
    """Build the application."""
    app = FastAPI(title="whybox", redirect_slashes=False, docs_url=None, redoc_url=None)
    exchange = Exchange(intake, settings)
    answers = Answers(operations, metrics, intake.buffers, settings)
    operator = _Operator(catalogue, metrics)

    at: dict[str, _Verbs] = {}

    def add(verb: str, path: str, operation: str | Operation, answer: Answer) -> None:
        chosen = operation if callable(operation) else lambda _: operation
        at.setdefault(path, _Verbs())[verb] = exchange.endpoint(chosen, answer)

    for address in ADDRESSES:
        add(address.verb, address.path.replace("}", ":name}"), _operation(address), answers.at(address))
    add("GET", "/healthz", "healthz", operator.health)
    add("GET", "/readyz", "readyz", operator.ready)
    add("GET", "/metrics", "metrics", operator.scrape)
    for path, operation, answer in playground.pages():
        add("GET", path, operation, answer)
    # One route a path, so that who comes with another verb is told all that there are.
    app.router.routes += [Route(path, verbs, methods=list(verbs)) for path, verbs in at.items()]
    for status in (404, 405):
        app.add_exception_handler(status, exchange.refuse)
    app.openapi = cache(openapi.document)  # type: ignore[method-assign]
    return app


class _Verbs(dict[str, Endpoint]):
    """What answers at one path, by verb: an ASGI application."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        verb = scope["method"]
        await self["GET" if verb == "HEAD" else verb](scope, receive, send)


def _operation(address: Address) -> Operation:
    """Return what says which operation is asked for at an address."""
    return lambda request: address.operation_for(request.headers.get("accept", ""))


class _Operator:
    """What operators and their machines look at."""

    def __init__(self, catalogue: Catalogue, metrics: Metrics) -> None:
        self._catalogue = catalogue
        self._metrics = metrics

    async def health(self, _request: Request, _call: Call, _observation: Observation) -> Response:
        """Say that the process lives."""
        return Response(to_json({"status": "ok"}), media_type=media.JSON)

    async def ready(self, _request: Request, call: Call, observation: Observation) -> Response:
        """Say whether every model can answer, and if not, why."""
        await self._catalogue.look(call.deadline)
        readiness = self._catalogue.readiness()
        if readiness.ready:
            return Response(to_json({"ready": True, "models": self._catalogue.names}), media_type=media.JSON)
        error = ContractError(
            "backend_unavailable", "not every model can answer", retry_after=RETRY_AFTER_SECONDS
        )
        observation.code = error.type
        return problem(error, call.request_id, {"ready": False, "reasons": readiness.reasons})

    async def scrape(self, _request: Request, _call: Call, _observation: Observation) -> Response:
        """Give the metrics in Prometheus's text format."""
        from prometheus_client import generate_latest

        return Response(generate_latest(self._metrics.registry), media_type=METRICS_TEXT)
