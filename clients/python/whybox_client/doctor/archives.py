"""Checks of the archives in a model store."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from whybox_client.doctor import families
from whybox_client.doctor.findings import Finding

_MANIFEST = "MAR-INF/MANIFEST.json"
_RECIPE = "recipe.yaml"
_FAMILY = re.compile(rb"^family: ([\w-]+)$", re.MULTILINE)
# An archive carries the packages that it was built from.
_CARRIED = ("whybox", "whybox_proto")
_BUILD = "whybox models build"


def store(folder: Path) -> Iterator[Finding]:
    """Check each archive of a model store."""
    if not folder.is_dir():
        yield Finding(
            "model store",
            "warning",
            f"there is no folder {folder}",
            f"name it with --model-store, or {_BUILD}",
        )
        return
    files = sorted(folder.glob("*.mar"))
    if not files:
        yield Finding("model store", "warning", f"{folder} has no archives", _BUILD)
    for file in files:
        yield archive(file)


def archive(file: Path) -> Finding:
    """Check that an archive can be read, is whole, holds this version of whybox, and has its library here."""
    name = f"archive {file.name}"
    try:
        with zipfile.ZipFile(file) as packed:
            if (broken := packed.testzip()) is not None:
                return _broken(name, f"its {broken} is damaged")
            model = json.loads(packed.read(_MANIFEST))["model"]
            if model["handler"] not in packed.namelist():
                return _broken(name, f"its handler {model['handler']} is missing")
            lacking = families.lacking(_family(packed))
            other = _other_version(packed)
    except (OSError, zipfile.BadZipFile, NotImplementedError) as error:
        return _broken(name, f"cannot be read: {getattr(error, 'strerror', None) or error}")
    except (KeyError, TypeError, ValueError):
        return _broken(name, "is no archive of TorchServe's")
    says = f"version {model.get('modelVersion', '?')}"
    if lacking is not None:
        return Finding(
            name, "problem", f"{says}, needs {lacking.library}, which is not installed", lacking.install
        )
    if other:
        return Finding(
            name,
            "warning",
            f"{says}, of another version of whybox: {other} differs",
            f"build it anew: {_BUILD}",
        )
    return Finding(name, "ok", says)


def _broken(name: str, says: str) -> Finding:
    return Finding(name, "problem", says, f"build it anew ({_BUILD}), or take it out of the model store")


def _family(packed: zipfile.ZipFile) -> str:
    """Return the family that an archive's recipe names; empty where it has none, as in another's archive."""
    if _RECIPE not in packed.namelist():
        return ""
    named = _FAMILY.search(packed.read(_RECIPE))
    return named[1].decode() if named else ""


def _other_version(packed: zipfile.ZipFile) -> str | None:
    """Return a file of ours that is another in the archive; None where there is none, or nothing of ours."""
    for package in _CARRIED:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        root = Path(spec.origin).parent.parent
        for name in packed.namelist():
            if not (name.startswith(f"{package}/") and name.endswith(".py")):
                continue
            here = root / name
            if not here.is_file() or here.read_bytes() != packed.read(name):
                return name
    return None
