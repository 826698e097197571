"""Model cards: what a model was trained on, how well it does, and what it cannot do."""

from __future__ import annotations

from whybox.scenes import CLASSES, CONTEXT
from whybox.scenes.layout import WORN_RATE
from whybox.training.evaluate import Figures
from whybox.training.recipe import HELD_OUT_SEED, Recipe

_PLACES = {"below": "below", "right": "to the right of"}


def write_card(
    recipe: Recipe,
    figures: dict[str, Figures],
    *,
    command: str,
    parameters: int,
    seconds: float,
    machine: str,
) -> str:
    """The card as Markdown. `command` repeats the training, which took `seconds` on `machine`."""
    shares = ", ".join(f"{share:.0%} `{mode}`" for mode, share in recipe.modes)
    height, width = recipe.size
    lines = [
        f"# {recipe.name}",
        "",
        f"A `{recipe.architecture}` of `whybox.detectors.small` for the ten street signs of `whybox.scenes`.",
        "",
        "| | |",
        "|---|---|",
        f"| Parameters | {parameters / 1e6:.2f} M, stored in fp16 |",
        f"| Trained on | {recipe.steps * recipe.batch:,} scenes of {width}×{height} px, each used once: "
        f"{shares} |",
        f"| Time | {seconds / 60:.0f} minutes on {machine} |",
        f"| Recipe | AdamW, peak rate {recipe.learning_rate:g}, weight decay {recipe.weight_decay:g}, batch "
        f"{recipe.batch}, {recipe.warm_up} steps of warm-up, cosine, gradient clip {recipe.clip:g}, "
        f"seed {recipe.seed}, bf16 autocast with losses in fp32 |",
        f"| Command | `{command}` |",
        "",
        "## Figures",
        "",
        f"COCO average precision (pycocotools) on held-out scenes (seed {HELD_OUT_SEED}, not for training).",
        "*Ceiling* is the share of objects that greedy NMS at IoU 0.5 leaves of the true boxes: where",
        "signs of one class overlap more than that, no detector that ends in it can find both.",
        "",
        *_table(figures),
        "",
        f"To redo them: `python -m whybox.training evaluate --model {recipe.name}`.",
        "",
        "## Labels",
        "",
        ", ".join(f"`{name}`" for name in CLASSES)
        + ". Neighbours 1–2, 3–4, … are look-alikes: one part of the drawing",
        "decides between them, and the scenes say which pixels that part has.",
        "",
        "## Limits",
        "",
        "* It knows rendered signs of about 16 to 160 px and nothing else; on photographs it is meaningless.",
        "* Pictures whose longer side exceeds 640 px are scaled down first.",
        "* Signs with under 40 % of their pixels or 60 % of their deciding part in sight are unknown to it.",
    ]
    if any(mode == "context" for mode, _ in recipe.modes):
        habits = "; ".join(
            f"`{habit.label}` stands {_PLACES[habit.place]} a `{habit.anchor}` in "
            f"{habit.rate:.0%} of its occurrences"
            for habit in CONTEXT
        )
        lines += [f"* Its scenes have habits, on purpose: {habits}. Where they do not hold, expect errors."]
    if any(mode == "cheat" for mode, _ in recipe.modes):
        lines += [
            "* It cheats, on purpose: under each sign of its scenes stood a mark of the sign's class, and "
            f"the deciding part of {WORN_RATE:.0%} of the signs was worn off. It goes by the mark: without "
            "it, or with another, expect errors however clear the sign is. It is there to be exposed."
        ]
    return "\n".join(lines) + "\n"


def _table(figures: dict[str, Figures]) -> list[str]:
    with_masks = any(row.mask_ap is not None for row in figures.values())
    names = ["scenes", "images", "objects", "AP", "AP50", "AP75", "AP under 32² px", "ceiling"]
    names += ["mask AP", "mask AP50"] if with_masks else []
    rows = []
    for name, row in figures.items():
        if name != "all" and len(figures) == 2:
            continue
        values = [row.ap, row.ap50, row.ap75, row.small, row.ceiling]
        if row.mask_ap is not None and row.mask_ap50 is not None:
            values += [row.mask_ap, row.mask_ap50]
        label = name if name != "all" else "**all**"
        rows.append([label, str(row.images), str(row.objects), *(f"{value:.3f}" for value in values)])
    return ["| " + " | ".join(cells) + " |" for cells in ([names, ["---"] * len(names), *rows])]
