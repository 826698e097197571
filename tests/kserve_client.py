"""Runs kserve's own client; it lives in an environment of its own, without whybox and pytest.

Reads one JSON object from standard input, {"url", "model", "call", "data"},
and writes another: {"answer"}, or {"status", "body"} of the response for which the client raised an error.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
from kserve import InferenceRESTClient, RESTConfig

PATIENCE_SECONDS = 100.0


async def ask(url: str, model: str, call: str, data: dict[str, Any] | None) -> Any:
    """Make one call of the client, with KServe's protocol V1."""
    client = InferenceRESTClient(RESTConfig(protocol="v1", retries=0, timeout=PATIENCE_SECONDS))
    if call == "infer":
        return await client.infer(url, data, model_name=model)
    if call == "explain":
        return await client.explain(url, model_name=model, data=data)
    return await client.is_model_ready(url, model)


def main() -> None:
    """Ask what standard input says."""
    try:
        told = {"answer": asyncio.run(ask(**json.load(sys.stdin)))}
    except httpx.HTTPStatusError as error:
        told = {"status": error.response.status_code, "body": error.response.json()}
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
