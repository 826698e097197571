"""`import whybox_client` is light, and its names are there."""

from __future__ import annotations

import json
import subprocess
import sys

import whybox_client

HEAVY = ("torch", "grpc", "numpy", "PIL", "httpx", "google.protobuf", "tqdm")


def run(code: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_import_loads_nothing_heavy() -> None:
    """How long it takes is for benchmarks/startup.py to say."""
    code = (
        "import json, sys; import whybox_client; "
        f"print(json.dumps({{'loaded': [m for m in {HEAVY!r} if m in sys.modules]}}))"
    )
    assert run(code)["loaded"] == []


def test_a_rest_client_loads_no_grpc_and_no_pictures() -> None:
    code = (
        "import json, sys; from whybox_client import Client; Client('http://127.0.0.1:1').close(); "
        "print(json.dumps({'loaded': [m for m in ('torch', 'grpc', 'numpy', 'PIL') if m in sys.modules]}))"
    )
    assert run(code)["loaded"] == []


def test_the_command_line_loads_nothing_heavy_for_its_help() -> None:
    code = (
        "import json, sys; from whybox_client.cli import main; "
        f"print(json.dumps({{'loaded': [m for m in {HEAVY!r} if m in sys.modules]}}))"
    )
    assert run(code)["loaded"] == []


def test_every_exported_name_is_there_and_no_other() -> None:
    homes = whybox_client._HOMES
    assert sorted(whybox_client.__all__) == whybox_client.__all__ == sorted(homes)
    for name, home in homes.items():
        assert getattr(whybox_client, name).__module__ == home
    assert set(whybox_client.__all__) <= set(dir(whybox_client))
    assert not hasattr(whybox_client, "Clint")
