"""Shell completion: the scripts, and what they get to complete."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from test_client_errors import answer, web
from whybox_client.cli import main
from whybox_proto.v1 import explainer_pb2, types_pb2

MODELS = explainer_pb2.ListModelsResponse(
    models=[types_pb2.Model(name=n) for n in ("signs", "signals", "cars")]
)
LISTED = answer(200, "application/x-protobuf", MODELS.SerializeToString())


def complete(words: str, **environment: str) -> list[str]:
    """Ask as bash does at a Tab behind the last word."""
    done = subprocess.run(
        [sys.executable, "-m", "whybox_client.cli"],
        env={
            **os.environ,
            "_WHYBOX_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_printed(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_WHYBOX_COMPLETE={shell}_complete" in result.stdout


def test_another_shell_is_refused() -> None:
    assert CliRunner().invoke(main, ["completion", "tcsh"]).exit_code == 2


def test_commands_and_options() -> None:
    assert complete("whybox de") == ["plain,detect"]
    assert "plain,--continue-on-error" in complete("whybox detect --con")


def test_files() -> None:
    assert complete("whybox detect ./a") == ["file,./a"]


def test_names_of_models() -> None:
    with web(LISTED) as server:
        assert complete("whybox detect -m sig", WHYBOX_URL=server.url) == ["plain,signs", "plain,signals"]
        assert complete(f"whybox explain --url {server.url} -m c") == ["plain,cars"]
        assert complete(f"whybox models --url {server.url} show si") == ["plain,signs", "plain,signals"]


def test_names_of_models_of_the_live_service(live: Any) -> None:
    for url in (live.rest, live.grpc):
        told = complete("whybox detect -m ", WHYBOX_URL=url)
        assert told == [f"plain,{name}" for name in sorted(live.models)]


def test_a_service_that_does_not_answer_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for url in ("http://127.0.0.1:9", f"http://127.0.0.1:{silent.getsockname()[1]}", "nonsense"):
            start = time.monotonic()
            assert complete("whybox detect -m s", WHYBOX_URL=url) == []
            assert time.monotonic() - start < 20


def test_bash_completes(tmp_path: Path) -> None:
    """The script in a real bash, asked through the function that it registers."""
    (tmp_path / "whybox").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m whybox_client.cli "$@"\n')
    (tmp_path / "whybox").chmod(0o755)
    script = (
        'eval "$(whybox completion bash)"\n'
        "COMP_WORDS=(whybox comp); COMP_CWORD=1\n"
        "compopt() { :; }\n"
        "_whybox_completion whybox\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("completion\n", "")
