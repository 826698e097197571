"""Checks of the families of detectors: whether the library of each is here, fits, and loads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from whybox_client.doctor import installation
from whybox_client.doctor.findings import Finding


@dataclass(frozen=True)
class Family:
    """The library of a family of detectors.

    Attributes:
        library: its distribution; the family has the same name.
        extra: of whybox, that asks for it and what it needs besides.
        install: how to install it.
        tried: its versions that were tried; empty: those that the extra asks for.
        code: that fails where the library does not load, and prints a list in JSON; empty: it is not tried.
    """

    library: str
    extra: str
    install: str
    tried: str = ""
    code: str = ""


FAMILIES = (
    # Whether it loads is tried together with torch.
    Family("torchvision", "handlers", installation.SERVE),
    Family("transformers", "transformers", "pip install 'whybox[serve,transformers]'"),
    Family(
        "detectron2",
        "detectron2",
        "pip install 'whybox[serve,detectron2]', then build it against the torch that is here: "
        "docs/detectors/detectron2.md",
        tried=">=0.6,<0.7",  # no extra can ask for what no index has
        # Its extension alone: it fits the torch that it was built against, and no other.
        code="import json, torch, detectron2._C; print(json.dumps([]))",
    ),
)


def findings() -> Iterator[Finding]:
    """Check each family; one that is not installed is told, and is no fault."""
    for family in FAMILIES:
        yield _finding(family)


def lacking(name: str) -> Family | None:
    """Return the family of a name if its library is not installed; None for one that is, or is not known."""
    known = {family.library: family for family in FAMILIES}
    return known[name] if name in known and _version(name) is None else None


def _finding(family: Family) -> Finding:
    check, version = f"family {family.library}", _version(family.library)
    if version is None:
        return Finding(check, "ok", f"not installed; its models need it: {family.install}")
    says = f"{family.library} {version}"
    if family.code and isinstance(tried := installation.attempt(family.code), str):
        return Finding(check, "problem", f"{says} does not load: {tried}", family.install)
    required = installation.required((family.extra,))
    own = family.tried or required.get(family.library, "")
    if not installation.fits(version, own):
        return Finding(check, "warning", f"{says} was not tried; {own} was", family.install)
    # What serving needs is told among the packages.
    besides = sorted(required.keys() - installation.required(installation.SERVING).keys())
    missing = [name for name in besides if name != family.library and _version(name) is None]
    if missing:
        return Finding(check, "warning", f"{says} misses {', '.join(missing)}", family.install)
    return Finding(check, "ok", f"{says}, within {own}" if own else says)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
