"""Renders kustomizations as far as ours go, since the tests have no kustomize.

What it knows: resources, namespace, labels without selectors, images, generated ConfigMaps (made, or merged
into), and patches with a target: JSON patches, which change a kind only where an option lets them, and ones
that delete. Anything else is an error. Unlike kustomize it adds no hash to the names of ConfigMaps; with one,
a change of a ConfigMap makes new pods.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

Object = dict[str, Any]

_KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "labels",
    "images",
    "configMapGenerator",
    "patches",
}


def render(folder: Path) -> list[Object]:
    """Return the objects of a kustomization.

    Raises:
        ValueError: where it asks for what is not known here, or names what is not there.
    """
    given = yaml.safe_load((folder / "kustomization.yaml").read_text())
    if unknown := set(given) - _KNOWN:
        raise ValueError(f"{folder}: {', '.join(sorted(unknown))} is not known here")
    objects: list[Object] = []
    for resource in given.get("resources", []):
        path = folder / resource
        objects += render(path) if path.is_dir() else load(path)
    for generator in given.get("configMapGenerator", []):
        _generate(generator, objects)
    for patch in given.get("patches", []):
        _patch(patch, objects)
    for image in given.get("images", []):
        _rename(image, objects)
    for labels in given.get("labels", []):
        if set(labels) != {"pairs"}:
            raise ValueError(f"{folder}: labels that reach selectors are not known here")
        for one in objects:
            one["metadata"].setdefault("labels", {}).update(labels["pairs"])
    if namespace := given.get("namespace"):
        for one in objects:
            one["metadata"]["namespace"] = namespace
    return objects


def load(path: Path) -> list[Object]:
    """Return the objects of a file."""
    return [one for one in yaml.safe_load_all(path.read_text()) if one is not None]


def containers(one: Object) -> Iterator[Object]:
    """Yield the containers of an object that makes pods."""
    yield from one.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])


def _generate(generator: Object, objects: list[Object]) -> None:
    literals = dict(literal.split("=", 1) for literal in generator["literals"])
    if generator.get("behavior", "create") == "create":
        metadata = {"name": generator["name"]}
        objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": literals})
        return
    if generator["behavior"] != "merge":
        raise ValueError(f"{generator['behavior']} is not known here")
    _find(objects, "ConfigMap", generator["name"])["data"].update(literals)


def _patch(patch: Object, objects: list[Object]) -> None:
    options = patch.get("options", {})
    if not {"target", "patch"} <= set(patch) <= {"target", "patch", "options"}:
        raise ValueError("a patch has a target and operations")
    if set(patch["target"]) != {"kind", "name"} or set(options) - {"allowKindChange"}:
        raise ValueError("a patch's target has a kind and a name; it may be allowed to change the kind")
    one = _find(objects, patch["target"]["kind"], patch["target"]["name"])
    asked = yaml.safe_load(patch["patch"])
    if isinstance(asked, dict):
        same = {"$patch": "delete", **{key: one[key] for key in ("apiVersion", "kind")}}
        if asked != {**same, "metadata": {"name": one["metadata"]["name"]}}:
            raise ValueError("a patch that is no list of operations deletes its target")
        objects.remove(one)
        return
    changed = jsonpatch.JsonPatch(asked).apply(copy.deepcopy(one))
    if changed["kind"] != one["kind"] and not options.get("allowKindChange"):
        raise ValueError(f"a patch changes the kind of {one['metadata']['name']}")
    one.clear()
    one.update(changed)


def _rename(image: Object, objects: list[Object]) -> None:
    found = False
    for one in objects:
        for container in containers(one):
            name = container["image"].rpartition("/")[2].partition(":")[0]
            if name == image["name"]:
                found = True
                container["image"] = f"{image.get('newName', name)}:{image['newTag']}"
    if not found:
        raise ValueError(f"no container has the image {image['name']}")


def _find(objects: list[Object], kind: str, name: str) -> Object:
    for one in objects:
        if (one["kind"], one["metadata"]["name"]) == (kind, name):
            return one
    raise ValueError(f"there is no {kind} {name}")
