"""One picture of every explanation method, on the same scene, and what the detector that cheats looks at.

Runs the engine in this process; needs no service. Writes into ``docs/images``.

    python examples/methods.py
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
from google.protobuf import struct_pb2
from PIL import Image

from whybox.engine import Engine
from whybox.recipe import read_recipe
from whybox.scenes import Scene, render
from whybox_client.pictures import Tile, contact_sheet, fit, outline, overlay
from whybox_proto import maps
from whybox_proto.v1 import explainer_pb2, types_pb2, worker_pb2

ROOT = Path(__file__).parent.parent
SEED = 2_026
MODEL, SCENE = "retinanet-signs", 0
HONEST, CHEAT, CHEAT_SCENE = "retinanet-signs", "retinanet-signs-cheat", 2
CHEAT_PARAMS = {"side": 20, "stride": 10}
"""Of mask-out: a square that hides the mark or a part of the sign, not both."""
SIDES = ("x1", "y1", "x2", "y2")
TILE = 200


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--method", default="", help="this method alone, and no cheat")
    options = parser.parse_args()
    folder = options.out / "methods"
    folder.mkdir(parents=True, exist_ok=True)
    engine = load(MODEL)
    scene = render("plain", seed=SEED, index=SCENE)
    chosen = [method for method in engine.model.methods if options.method in ("", method.name)]
    for method in chosen:
        sides = [side for side in SIDES if side in method.targets]
        strip = explained(engine, scene.image, method.name, ["class", *sides])
        contact_sheet([strip]).save(folder / f"{method.name}.png")
        print(folder / f"{method.name}.png", flush=True)
    if options.method:
        return
    path = options.out / "cheat.png"
    contact_sheet([cheating(load(name), CHEAT_SCENE) for name in (HONEST, CHEAT)]).save(path)
    print(path)


def load(name: str) -> Engine:
    """Load a demo model."""
    recipe = read_recipe(ROOT / "model_store" / f"{name}.yaml")
    return Engine.load(recipe, ROOT / "model_store" / str(recipe.weights))


def explained(engine: Engine, pixels: np.ndarray, method: str, targets: list[str]) -> list[Tile]:
    """Explain a picture's best detection: the detection itself, then a tile for each target."""
    answer = ask(engine, pixels, method=method, targets=targets, select=types_pb2.Select(indices=[0]))
    (detection,) = answer.detections
    picture = Image.fromarray(pixels)
    plain = picture.copy()
    outline(plain, detection.box)
    tiles = [Tile(fit(plain, TILE), f"{detection.label} {detection.score:.2f}")]
    for heat_map in answer.heat_maps:
        x1, y1, x2, y2 = heat_map.region
        values = maps.enlarge(maps.decode(heat_map), (x1, y1, x2, y2), picture.width, picture.height)
        drawn = overlay(picture, values, box=detection.box, signed=heat_map.signed)
        tiles.append(Tile(fit(drawn, TILE), f"{method} {heat_map.target}"))
    return tiles


def cheating(engine: Engine, index: int) -> list[Tile]:
    """Show what a model makes of a marked sign, and of the same sign without its mark."""
    scene = render("cheat", seed=SEED, index=index, worn=False)
    thing = scene.objects[0]
    bare = render("cheat", seed=SEED, index=index, worn=False, unmarked=[0])
    tiles = []
    for name, shown in (("with the mark", scene), ("without it", bare)):
        answer = of_object(engine, shown, list(thing.box), thing.label)
        picture = Image.fromarray(shown.image)
        if not answer.heat_maps:
            tiles.append(Tile(fit(picture, TILE), f"{name}: nothing"))
            continue
        heat_map, detection = answer.heat_maps[0], answer.detections[0]
        x1, y1, x2, y2 = heat_map.region
        values = maps.enlarge(maps.decode(heat_map), (x1, y1, x2, y2), picture.width, picture.height)
        drawn = overlay(picture, values, box=detection.box, signed=heat_map.signed)
        tiles.append(Tile(fit(drawn, TILE), f"{name}: {detection.label} {detection.score:.2f}"))
    return [Tile(fit(Image.fromarray(scene.image), TILE), engine.model.name), *tiles]


def of_object(engine: Engine, scene: Scene, box: list[float], label: str) -> explainer_pb2.ExplainResponse:
    """Explain the detection of an object."""
    select = types_pb2.Select(box=box, labels=[label], score_threshold=0.05)
    params = struct_pb2.Struct()
    params.update(CHEAT_PARAMS)
    return ask(engine, scene.image, method="mask_out", params=params, select=select)


def ask(engine: Engine, pixels: np.ndarray, **fields: object) -> explainer_pb2.ExplainResponse:
    """Have the engine answer a request.

    Raises:
        RuntimeError: with what went wrong.
    """
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG")
    request = explainer_pb2.ExplainRequest(image=encoded.getvalue(), **fields)  # type: ignore[arg-type]
    (reply,) = engine.answer([worker_pb2.WorkerRequest(explain=request)])
    if reply.HasField("error"):
        raise RuntimeError(reply.error.message)
    return reply.explain


if __name__ == "__main__":
    main()
