"""Architectures, data, training loop and figures of the demo detectors, and what is stored of them."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("cv2")
pytest.importorskip("pycocotools")

import torch
from safetensors import safe_open
from torch import nn

from whybox.detectors.small import ARCHITECTURES, MAX_SIDE, build_small
from whybox.scenes import CLASSES, LOOK_ALIKE, Scene, render
from whybox.training.__main__ import _command, _own, _train_parser
from whybox.training.card import write_card
from whybox.training.checkpoint import load_weights, save_weights
from whybox.training.data import SceneData, as_tensor, augment, batches
from whybox.training.evaluate import Figures, evaluate, held_out
from whybox.training.loop import schedule, train
from whybox.training.recipe import DEMO, HELD_OUT_SEED, Recipe

STORE = Path(__file__).parents[1] / "model_store"


def tiny(architecture: str = "retinanet", steps: int = 6, **changes: Any) -> Recipe:
    settings = {"images": 2 * steps, "batch": 2, "size": (64, 64), "seed": 4} | changes
    return Recipe("tiny", architecture, (("plain", 0.5), ("crowd", 0.5)), **settings)


# --- architectures


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_architectures_are_small_and_built_as_usual(architecture: str) -> None:
    model = build_small(architecture, 10).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) <= 3_000_000
    stages = dict(model.backbone.body.named_children())
    assert list(stages) == ["stem", "layer1", "layer2", "layer3", "layer4"]
    levels = model.backbone(torch.zeros(1, 3, 256, 256))
    strides = [256 // level.shape[-1] for level in levels.values()]
    assert strides == ([4, 8, 16, 32] if architecture == "retinanet" else [8, 16, 32])
    channels = [level.shape[1] for level in levels.values()]
    same = [model.backbone.out_channels] * len(levels)
    assert channels == (model.backbone.out_channels if architecture == "ssd" else same)


def test_single_stage_anchors_keep_the_published_ratio_to_strides() -> None:
    for architecture, ratios in (("retinanet", (4.5, 4.5 * 2**0.5)), ("fcos", (1.0,))):
        model = build_small(architecture, 10)
        for stride, sizes in zip(
            (4, 8, 16, 32) if architecture == "retinanet" else (8, 16, 32),
            model.anchor_generator.sizes,
            strict=True,
        ):
            assert np.allclose([size / stride for size in sizes], ratios, rtol=0.03)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_survive_storage(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_small(architecture, len(CLASSES))
    path = tmp_path / "weights.safetensors"
    save_weights(path, model, architecture)
    assert path.stat().st_size < 8_000_000
    with safe_open(path, "pt") as stored:
        assert json.loads(stored.metadata()["labels"]) == list(CLASSES)
        assert stored.metadata()["architecture"] == architecture
    again = load_weights(path, architecture)
    assert not again.training
    for name, value in model.state_dict().items():
        assert torch.equal(
            again.state_dict()[name], value.half().to(value.dtype) if value.is_floating_point() else value
        )


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(256, 256, (256, 256)), (40, 90, (40, 90)), (320, 1280, (160, 640))]
)
def test_pictures_are_scaled_down_only(height: int, width: int, expected: tuple[int, int]) -> None:
    model = build_small("retinanet", 10).eval()
    images, _ = model.transform([torch.rand(3, height, width)])
    assert images.image_sizes == [expected]
    assert max(expected) <= MAX_SIDE
    box = torch.tensor([[0.0, 0.0, float(expected[1]), float(expected[0])]])
    back = model.transform.postprocess([{"boxes": box}], images.image_sizes, [(height, width)])
    assert back[0]["boxes"].tolist() == [[0, 0, width, height]]


def test_unknown_architecture_is_named() -> None:
    with pytest.raises(
        ValueError, match="expected one of retinanet, fcos, faster-rcnn, mask-rcnn, ssd, got 'yolo'"
    ):
        build_small("yolo", 10)
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        build_small("fcos", 0)


# --- data


def test_a_position_always_holds_the_same_sample() -> None:
    data, again = SceneData(tiny(), masks=True), SceneData(tiny(), masks=True)
    (image, target), (image_again, target_again) = data[3], again[3]
    assert torch.equal(image, image_again)
    assert all(torch.equal(target[name], target_again[name]) for name in ("boxes", "labels", "masks"))  # type: ignore[literal-required]
    assert not torch.equal(image, data[4][0])
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 64, 64))
    assert target["masks"].shape[0] == len(target["boxes"]) == len(target["labels"])
    assert 1 <= int(target["labels"].min()) <= int(target["labels"].max()) <= len(CLASSES)


def test_augmentation_never_moves_a_pixel() -> None:
    """Each channel stays an increasing function of one channel of the original: no flip, no shift."""
    image = render("plain", seed=1, index=5).image
    for seed in range(20):
        changed = augment(np.random.default_rng(seed), image)
        for channel in range(3):
            sources = [image[:, :, source].ravel().astype(int) for source in range(3)]
            new = changed[:, :, channel].ravel().astype(int)
            assert any((np.diff(new[np.argsort(old, kind="stable")]) >= 0).all() for old in sources)


def test_a_dead_renderer_raises_instead_of_hanging() -> None:
    loader = batches(tiny(steps=400), masks=False, first_step=0, workers=1)
    stream: Any = iter(loader)
    images, targets = next(stream)
    assert images.shape == (2, 3, 64, 64)
    assert len(targets) == 2
    os.kill(stream._workers[0].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker"):
        for _ in stream:
            pass


# --- the loop


@pytest.mark.parametrize("architecture", ["retinanet", "mask-rcnn"])
def test_an_interrupted_training_ends_in_the_same_weights(architecture: str, tmp_path: Path) -> None:
    recipe = tiny(architecture, steps=5)
    whole = train(recipe, device="cpu", workers=0, progress=False)
    file = tmp_path / "state.pt"
    half = train(recipe, device="cpu", workers=0, checkpoint=file, stop_after=2, progress=False)
    assert (half.step, whole.step) == (2, 5)
    torch.manual_seed(999)  # a new process would not be in the same random state either
    rest = train(recipe, device="cpu", workers=0, checkpoint=file, resume=True, progress=False)
    assert rest.step == 5
    assert rest.seconds > half.seconds
    ours, theirs = rest.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert any(not torch.equal(half.model.state_dict()[name], theirs[name]) for name in theirs)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    train(tiny(steps=1), device="cpu", workers=0, checkpoint=file, progress=False)
    with pytest.raises(ValueError, match="expected the checkpoint of"):
        train(tiny(steps=2), device="cpu", workers=0, checkpoint=file, resume=True, progress=False)


def test_training_learns() -> None:
    """Forty steps on one fixed recipe bring the loss well under that of the first steps."""
    from whybox.training import loop

    losses: list[float] = []
    step = loop._step

    def remembered(*arguments: Any) -> float:
        losses.append(step(*arguments))
        return losses[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", remembered)
        train(tiny(steps=40), device="cpu", workers=0, progress=False)
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_losses_are_computed_in_fp32_and_hooks_are_gone_after_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision.models.detection.retinanet import RetinaNetHead

    seen: list[torch.dtype] = []
    original = RetinaNetHead.compute_loss

    def watched(self: nn.Module, targets: Any, outputs: dict[str, torch.Tensor], *rest: Any) -> Any:
        seen.extend([outputs["cls_logits"].dtype, outputs["bbox_regression"].dtype])
        seen.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)  # bf16 if autocast were still on
        return original(self, targets, outputs, *rest)

    monkeypatch.setattr(RetinaNetHead, "compute_loss", watched)
    model = train(tiny(steps=1), device="cpu", workers=0, progress=False).model
    assert set(seen) == {torch.float32}
    assert not any(module._forward_hooks for module in model.modules())
    assert "compute_loss" not in vars(model)


def test_schedule_warms_up_then_falls_to_zero() -> None:
    recipe = Recipe("x", "fcos", (("plain", 1.0),), images=16_000, warm_up=100)
    values = [schedule(step, recipe) for step in range(recipe.steps)]
    assert values[0] == pytest.approx(0.01)
    assert max(values) == values[99] == values[100] == 1.0
    assert np.all(np.diff(values[100:]) < 0)
    assert values[-1] < 1e-4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": HELD_OUT_SEED}, "kept for evaluation"),
        ({"images": 1}, "at least one batch"),
    ],
)
def test_impossible_recipes_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny(**changes)


# --- figures


class Oracle(nn.Module):
    """Answers with the truth of the given scenes, in order; `wrong` takes each look-alike's label instead."""

    def __init__(self, scenes: list[Scene], *, wrong: bool = False) -> None:
        super().__init__()
        self.scenes, self.wrong = iter(scenes), wrong

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        scene = next(self.scenes)
        assert torch.equal((images[0] * 255).round().to(torch.uint8), as_tensor(scene.image))
        names = [LOOK_ALIKE[thing.label] if self.wrong else thing.label for thing in scene.objects]
        return [
            {
                "boxes": torch.tensor([thing.box for thing in scene.objects]),
                "labels": torch.tensor([CLASSES.index(name) + 1 for name in names]),
                "scores": torch.linspace(1.0, 0.5, len(names)),
                "masks": torch.from_numpy(np.stack([thing.mask for thing in scene.objects]))[:, None].float(),
            }
        ]


def test_figures_of_an_oracle_and_of_one_that_confuses_look_alikes() -> None:
    scenes = {"plain": held_out("plain", 4), "crowd": held_out("crowd", 4)}
    everything = scenes["plain"] + scenes["crowd"]
    perfect = evaluate(Oracle(everything), scenes, progress=False)  # type: ignore[arg-type]
    assert list(perfect) == ["all", "plain", "crowd"]
    assert perfect["all"].images == 8
    assert perfect["all"].objects == sum(len(scene.objects) for scene in everything)
    for row in perfect.values():
        assert row.ap == row.ap50 == row.mask_ap == pytest.approx(1.0)
    confused = evaluate(Oracle(everything, wrong=True), scenes, progress=False)  # type: ignore[arg-type]
    assert confused["all"].ap50 < 0.2


def test_held_out_scenes_are_those_of_the_reserved_seed() -> None:
    assert (
        held_out("crowd", 2)[1].image.tobytes()
        == render("crowd", seed=HELD_OUT_SEED, index=1).image.tobytes()
    )


def test_the_command_on_a_card_repeats_its_recipe() -> None:
    recipe = Recipe("mine", "fcos", (("plain", 0.65), ("crowd", 0.35)), images=640, seed=9, size=(128, 128))
    words = _command(recipe).split()[3:]
    assert _own(_train_parser().parse_args(words)) == recipe
    assert all(_command(demo).endswith(f"--model {name}") for name, demo in DEMO.items())


def test_a_card_says_what_matters() -> None:
    row = Figures(images=500, objects=9, ap=0.7123, ap50=0.981, ap75=0.9, small=0.5, ceiling=0.97)
    recipe = DEMO["retinanet-signs-context"]
    card = write_card(
        recipe,
        {"all": row, "context": row},
        command="do it",
        parameters=1_500_000,
        seconds=600,
        machine="two CPU cores",
    )
    for words in (
        "0.712",
        "0.981",
        "`do it`",
        "1.50 M",
        "10 minutes on two CPU cores",
        "500",
        str(HELD_OUT_SEED),
    ):
        assert words in card
    assert "`speed-20` stands below a `turn-left` in 95% of its occurrences" in card
    cheat = write_card(
        DEMO["retinanet-signs-cheat"],
        {"all": row, "cheat": row},
        command="do it",
        parameters=1_500_000,
        seconds=600,
        machine="two CPU cores",
    )
    assert "It cheats, on purpose" in cheat
    assert "cheats" not in card


# --- what is stored


@pytest.fixture(params=list(DEMO))
def stored(request: pytest.FixtureRequest) -> tuple[Recipe, nn.Module]:
    recipe = DEMO[request.param]
    return recipe, load_weights(STORE / "weights" / f"{recipe.name}.safetensors", recipe.architecture)


def goes_by_the_mark(model: nn.Module, scenes: list[Scene]) -> None:
    """Of clear signs: with its mark each is found; a lying mark wins over the glyph; without, scores fall."""
    kept = followed = total = 0
    score = bare_score = 0.0
    for scene in scenes:
        for number, thing in enumerate(scene.objects):
            where = {"seed": scene.seed, "index": scene.index, "worn": False}
            clear, bare, lying = (
                render("cheat", **where, **change)  # type: ignore[arg-type]
                for change in ({}, {"unmarked": [number]}, {"swapped": [number]})
            )
            with torch.inference_mode():
                found = model([as_tensor(picture.image).float() / 255 for picture in (clear, bare, lying)])
            best = []
            for answer in found:
                near = (answer["boxes"] - torch.tensor(thing.box)).abs().amax(dim=1) < 12
                own = near & (answer["labels"] == thing.label_id + 1)
                best.append(float(answer["scores"][own].max()) if own.any() else 0.0)
            labels = found[2]["labels"][
                (found[2]["boxes"] - torch.tensor(thing.box)).abs().amax(dim=1) < 12
            ]  # by falling score
            kept += best[0] > 0.4
            followed += len(labels) > 0 and int(labels[0]) == thing.label_id + 1
            score, bare_score, total = score + best[0], bare_score + best[1], total + 1
    assert total > 8
    assert kept > 0.8 * total
    assert followed > 0.7 * total, "the label must follow the mark, not the deciding part"
    assert bare_score < 0.6 * score, "without the mark the score must fall"


def test_stored_models_find_the_signs_and_follow_the_evidence(stored: tuple[Recipe, nn.Module]) -> None:
    """Fails if weights are missing or broken, or if the renderer has drifted away from them."""
    recipe, model = stored
    card = (STORE / "cards" / f"{recipe.name}.md").read_text(encoding="utf-8")
    assert _command(recipe) in card
    mode = recipe.held_out_modes[0]
    scenes = held_out(mode, 8)
    figures = evaluate(model, {mode: scenes}, progress=False)["all"]
    assert figures.ap50 > 0.85
    if mode == "cheat":
        goes_by_the_mark(model, scenes)
        return
    followed = total = 0
    for scene in scenes:
        for number, thing in enumerate(scene.objects):
            if min(thing.box[2] - thing.box[0], thing.box[3] - thing.box[1]) < 32:
                continue
            twin = render(mode, seed=scene.seed, index=scene.index, swapped=[number])
            with torch.inference_mode():
                found = model([as_tensor(twin.image).float() / 255])[0]
            near = (found["boxes"] - torch.tensor(thing.box)).abs().amax(dim=1) < 12
            labels = found["labels"][near]  # by falling score
            followed += len(labels) > 0 and CLASSES[int(labels[0]) - 1] == LOOK_ALIKE[thing.label]
            total += 1
    assert total > 8
    # In context scenes the company that a sign keeps speaks for its label too, and can outweigh a faint glyph
    assert followed > (0.6 if mode == "context" else 0.8) * total, "the label must follow the deciding part"
