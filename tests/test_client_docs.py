"""`docs/sdk.md` tells the truth: its Python runs, its tree is the tree."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from whybox_client import errors

PAGE = Path(__file__).parent.parent / "docs" / "sdk.md"


def test_every_block_of_python_runs(
    live: Any,
    picture: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("street.jpg").write_bytes(picture)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 6
    code = "\n".join(blocks)
    for said, here in (
        ("http://127.0.0.1:8000", live.rest),
        ("grpc://127.0.0.1:8001", live.grpc),
        ("retinanet-signs", live.model),
    ):
        assert said in code
        code = code.replace(said, here)
    names: dict[str, Any] = {}
    try:
        exec(compile(code, str(PAGE), "exec"), names)
    finally:
        if "client" in names:
            names["client"].close()
    assert Path("overlay.png").exists()
    assert Path("third.png").exists()
    assert Path("why-not.png").exists()
    assert Path("inverted.png").exists()
    assert "did you mean 'class'? (field targets[0]; expected" in capsys.readouterr().out


def test_the_tree_of_errors_is_the_one_in_the_module() -> None:
    tree = re.search(r"^    WhyboxError\n(?:     .*\n)+", errors.__doc__ or "", re.MULTILINE)
    assert tree is not None
    assert tree.group() in PAGE.read_text()
