"""The offline tables: estimates, randomised weights, the papers' order, and their place in a page."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from builders import STORE, demo_engine, random_model, write_recipe
from whybox.detectors.base import Detections
from whybox.engine import Engine
from whybox.evaluation import command, report
from whybox.evaluation.bootstrap import estimate
from whybox.evaluation.cases import Case, cases, matches, mode_of
from whybox.evaluation.order import Finding, findings
from whybox.evaluation.randomise import Sanity, groups_of, randomised, sanity_of
from whybox.evaluation.table import ON_MARK, Results, Variant, measure_all, question_of, variants_of
from whybox.explaining import Explaining
from whybox.metrics.similarity import rank_correlation, structural_similarity
from whybox.scenes import render
from whybox_client.cli import main
from whybox_proto.errors import ContractError


class TestEstimates:
    def test_one_value_a_scene_is_the_textbook_bootstrap(self) -> None:
        values = np.random.default_rng(0).normal(3, 2, 200).tolist()
        found = estimate(values, list(range(200)))
        assert found.mean == pytest.approx(np.mean(values))
        error = np.std(values) / math.sqrt(200)
        assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.3 * error)
        assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.3 * error)
        assert found.count == 200

    def test_scenes_are_drawn_whole(self) -> None:
        """Ten times the same value in each scene: the interval is as wide as that of one each."""
        values = np.random.default_rng(1).normal(0, 1, 30)
        alone = estimate(values.tolist(), list(range(30)))
        tenfold = estimate(values.repeat(10).tolist(), np.arange(30).repeat(10).tolist())
        assert (tenfold.low, tenfold.high) == pytest.approx((alone.low, alone.high))

    def test_a_scene_with_more_counts_more(self) -> None:
        assert estimate([0, 0, 0, 4], [7, 7, 7, 9]).mean == 1

    def test_too_little(self) -> None:
        assert str(estimate([], [])) == "–"
        assert str(estimate([0.25, 0.5], [3, 3])) == "0.375"
        assert str(estimate([1, 1], [0, 1])) == "1.000 [1.000, 1.000]"
        with pytest.raises(ValueError, match="got 1 and 2"):
            estimate([1], [1, 2])


class TestSimilarity:
    def test_ranks(self) -> None:
        first = np.array([[1, 2], [3, 4]], np.float32)
        assert rank_correlation(first, first**3) == pytest.approx(1)
        assert rank_correlation(first, -first) == pytest.approx(-1)
        # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15).
        assert rank_correlation(first, np.array([[2, 1], [4, 3]], np.float32)) == pytest.approx(0.6)
        assert math.isnan(rank_correlation(first, np.ones((2, 2), np.float32)))

    def test_equal_values_share_their_mean_rank(self) -> None:
        first, second = (np.random.default_rng(s).integers(0, 4, (5, 6)).astype(np.float32) for s in (0, 1))

        def ranks(values: np.ndarray) -> np.ndarray:
            flat = values.ravel()
            return np.array([(flat < v).sum() + ((flat == v).sum() + 1) / 2 for v in flat])

        expected = np.corrcoef(ranks(first), ranks(second))[0, 1]
        assert rank_correlation(first, second) == pytest.approx(expected)

    def test_structure(self) -> None:
        first = np.random.default_rng(0).random((20, 24), np.float32)
        assert structural_similarity(first, 3 * first + 2) == pytest.approx(1)
        other = np.random.default_rng(1).random((20, 24), np.float32)
        assert abs(structural_similarity(first, other)) < 0.2
        assert structural_similarity(first, -first) < 0
        assert math.isnan(structural_similarity(first, np.ones((20, 24), np.float32)))

    def test_structure_pixel_by_pixel(self) -> None:
        first, second = (np.random.default_rng(s).random((9, 10)).astype(np.float32) for s in (2, 3))
        x, y = ((m - m.min()) / (m.max() - m.min()) for m in (first.astype(float), second.astype(float)))
        kernel = np.exp(-0.5 * (np.arange(-6, 7) / 1.5) ** 2)
        window = np.outer(kernel, kernel) / kernel.sum() ** 2
        wide_x, wide_y = (np.pad(m, 6, mode="symmetric") for m in (x, y))
        total = 0.0
        for row in range(9):
            for column in range(10):
                cut = slice(row, row + 13), slice(column, column + 13)
                mean_x, mean_y = (window * wide_x[cut]).sum(), (window * wide_y[cut]).sum()
                var_x = (window * (wide_x[cut] - mean_x) ** 2).sum()
                var_y = (window * (wide_y[cut] - mean_y) ** 2).sum()
                both = (window * (wide_x[cut] - mean_x) * (wide_y[cut] - mean_y)).sum()
                light = (2 * mean_x * mean_y + 1e-4) / (mean_x**2 + mean_y**2 + 1e-4)
                total += light * (2 * both + 9e-4) / (var_x + var_y + 9e-4)
        assert structural_similarity(first, second) == pytest.approx(total / 90)


class TestVariants:
    def test_a_name_alone(self) -> None:
        assert Variant.parse("odam").request.method == "odam"

    def test_layer_and_parameters(self) -> None:
        request = Variant.parse("odam@layer2+layer3:smoothing=0.1,sign=plus,exact=true").request
        assert request.layer == "layer2+layer3"
        assert dict(request.params) == {"smoothing": 0.1, "sign": "plus", "exact": True}

    def test_nonsense(self) -> None:
        with pytest.raises(ValueError, match="expected NAME"):
            Variant.parse("odam:smoothing")

    def test_what_a_detector_lacks_is_left_out_and_what_nobody_has_is_an_error(self, engine: Engine) -> None:
        names = [method.name for method in engine.model.methods]
        assert [variant.method for variant in variants_of(engine, [])] == names
        poorer = Engine(engine.recipe, engine.detector)
        poorer.model.methods.remove(next(m for m in poorer.model.methods if m.name == "odam"))
        assert variants_of(poorer, ["odam"]) == []
        with pytest.raises(ContractError, match="odma"):
            variants_of(engine, ["odma"])
        with pytest.raises(ContractError, match="layer9"):
            variants_of(engine, ["odam@layer9"])


class TestRandomisation:
    def test_groups_from_the_top(self) -> None:
        groups = list(groups_of(random_model("retinanet")))
        assert groups[:3] == ["head.regression_head", "head.classification_head", "backbone.fpn"]
        assert groups[3:] == [
            f"backbone.body.{name}" for name in ("layer4", "layer3", "layer2", "layer1", "stem")
        ]

    @pytest.mark.parametrize("fails", [False, True])
    def test_one_group_after_the_other_and_back(self, fails: bool) -> None:
        model = random_model("faster-rcnn")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        groups, seen = groups_of(model), []

        def changed() -> list[str]:
            return [name for name, group in groups.items() if not all(map(torch.equal, group, kept[name]))]

        kept = {name: [p.detach().clone() for p in group] for name, group in groups.items()}
        try:
            with randomised(model, 3) as steps:
                for name in steps:
                    seen.append(name)
                    assert changed() == seen
                    if fails and len(seen) == 2:
                        raise RuntimeError("in between")
        except RuntimeError:
            assert fails
        assert seen == list(groups)[: 2 if fails else None]
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_spread_and_mean_are_kept(self) -> None:
        model = random_model("retinanet")
        weight = model.backbone.body.layer4.conv1.weight.detach()
        mean, spread = float(weight.mean()), float(weight.std())
        with randomised(model, 1) as steps:
            list(steps)
            assert float(weight.std()) == pytest.approx(spread, rel=0.02)
            assert float(weight.mean()) == pytest.approx(mean, abs=spread / 20)


def results_of(values: dict[str, dict[str, float]]) -> Results:
    """The same values for every map of 6 scenes, but for a little noise that maps share."""
    noise = np.random.default_rng(0).normal(0, 0.01, 6)
    return Results(
        {
            variant: {
                measure: {(scene, 0, "class"): mean + float(noise[scene]) for scene in range(6)}
                for measure, mean in row.items()
            }
            for variant, row in values.items()
        },
        seconds={variant: [0.001] for variant in values},
        forward_seconds=[0.02],
        scenes=6,
        detections=6,
    )


class TestOrder:
    def verdicts(self, results: Results, sanity: Sanity | None = None) -> dict[str, str]:
        return {finding.claim: finding.verdict for finding in findings(results, sanity)}

    def test_it_holds_and_it_does_not(self) -> None:
        odam = {"odi_mask": 0.1, "pointing_mask": 0.9, "evidence_ratio": 1.5}
        other = {"odi_mask": 0.5, "pointing_mask": 0.9, "evidence_ratio": 2.0}
        verdicts = self.verdicts(results_of({"odam": odam, "grad_cam": other}))
        assert verdicts == {
            "odi_mask of odam is lower than that of grad_cam": "yes",
            "pointing_mask of odam is higher than that of grad_cam": "unclear",
            "evidence_ratio of odam is higher than that of grad_cam": "no",
        }

    def test_sides(self) -> None:
        results = results_of({"odam": {"iof_own_third": 0.6, "iof_middle_third": 0.3}})
        (finding,) = findings(results)
        assert finding.verdict == "yes"
        assert finding.figure.startswith("IOF 0.300 [0.300, 0.300]")

    def test_nearness_and_cost(self) -> None:
        values = {"odam": {"deletion": 0.2, "insertion": 0.7}, "d_rise": {"deletion": 0.21, "insertion": 0.8}}
        results = results_of(values)
        results.seconds["d_rise"] = [0.2]
        verdicts = self.verdicts(results)
        assert verdicts["deletion of d_rise is within 0.05 of that of odam"] == "yes"
        assert verdicts["insertion of d_rise is within 0.05 of that of odam"] == "no"
        assert verdicts["a map of d_rise costs a hundred times one of odam"] == "yes"

    def test_randomised(self) -> None:
        scenes = [(scene, 0) for scene in range(8)]
        sanity = Sanity(["head", "body"])
        for variant, after in (("odam", 0.2), ("edges", 0.9)):
            sanity.ranks[variant, 0] = {key: 0.5 + 0.01 * key[0] for key in scenes}
            sanity.ranks[variant, 2] = dict.fromkeys(scenes, after)
        verdicts = self.verdicts(Results(), sanity)
        assert [verdict for _, verdict in sorted(verdicts.items())] == ["no", "yes"]

    def test_absent_methods_are_passed_over(self) -> None:
        assert list(findings(results_of({"mask_out": {"deletion": 0.1}}))) == []


class TestReport:
    def test_a_table(self) -> None:
        results = results_of({"a": {"deletion": 0.25, "vea": 0.5}, "b": {"deletion": 0.5}})
        results.samples = {"a": 0, "b": 500}
        lines = report.table(results).splitlines()
        assert lines[0] == "| measure | a | b |"
        assert lines[2].startswith("| deletion ↓ | **0.2")
        assert lines[2].count("**") == 2
        assert lines[3].startswith("| vea ↑ | 0.")
        assert lines[3].endswith("| – |")
        assert lines[4:] == [
            "| samples | – | 500 |",
            "| ms a map | 1.0 | 1.0 |",
            "| over a forward pass | 0.05 | 0.05 |",
        ]

    def test_findings(self) -> None:
        text = report.order([("retina", Finding("it rains", "1 mm", "unclear"))])
        assert text.splitlines()[2] == "| retina | it rains | 1 mm | unclear |"

    def test_a_page_without_markers_gets_them_at_its_end(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("# Title\n\nText.\n")
        report.write(page, "x", "one\n")
        assert page.read_text() == "# Title\n\nText.\n\n<!-- x: begin -->\n\none\n\n<!-- x: end -->\n"

    def test_what_was_between_the_markers_is_replaced_and_nothing_else(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("# Title\n\n<!-- x: begin -->\nold\n<!-- x: end -->\n\n## Next\n")
        for text in ("new", "newer"):
            report.write(page, "x", text)
            assert (
                page.read_text() == f"# Title\n\n<!-- x: begin -->\n\n{text}\n\n<!-- x: end -->\n\n## Next\n"
            )

    def test_one_marker_alone(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("<!-- x: begin -->\nold\n")
        with pytest.raises(ValueError, match="once each"):
            report.write(page, "x", "new")
        assert page.read_text() == "<!-- x: begin -->\nold\n"


@pytest.fixture(scope="module")
def engine() -> Engine:
    """The demo RetinaNet."""
    return demo_engine("retinanet-signs")


@pytest.fixture(scope="module")
def found(engine: Engine) -> list[Case]:
    return [case for case in cases(engine, "plain", 4, overlap=0.75, most=2) if case]


class TestCases:
    def test_matches(self) -> None:
        scene = render("plain", seed=7_000_001, index=0)
        first = scene.objects[0]
        x1, y1, x2, y2 = first.box
        shifted = (x1 + 0.2 * (x2 - x1), y1, x2 + 0.2 * (x2 - x1), y2)  # IoU 2/3
        boxes = torch.tensor([shifted, first.box, first.box])
        labels = torch.tensor([first.label_id, first.label_id, (first.label_id + 1) % 10])
        scores = torch.tensor([0.9, 0.8, 0.7])
        detections = Detections(boxes, labels, scores, torch.zeros(3, 10), torch.arange(3))
        assert matches(detections, scene.objects, 0.5) == [(1, 0)]
        assert matches(detections[:1], scene.objects, 0.5) == [(0, 0)]
        assert matches(detections[:1], scene.objects, 0.75) == []
        assert matches(detections[:0], scene.objects, 0.5) == []

    def test_modes(self) -> None:
        assert [mode_of(f"retinanet-signs{end}") for end in ("", "-context", "-cheat")] == [
            "plain",
            "context",
            "cheat",
        ]

    def test_detections_and_their_objects(self, found: list[Case]) -> None:
        assert len(found) >= 3
        for case in found:
            assert 1 <= len(case.found) == len(case.truths) <= 2
            for box, truth in zip(case.found.boxes.tolist(), case.truths, strict=True):
                assert np.abs(np.array(box) - truth.box).max() < 12
                assert truth.mask is not None
                assert truth.evidence is not None
                assert (truth.evidence & ~truth.mask).sum() == 0
                assert truth.other_masks is not None
                assert not (truth.other_masks & truth.mask).any()


@pytest.fixture(scope="module")
def results(engine: Engine, found: list[Case]) -> Results:
    measures = [
        "energy_box",
        "pointing_box",
        "odi_box",
        "evidence_ratio",
        "iof_own_third",
        "iof_middle_third",
    ]
    return measure_all(engine, iter([*found, None]), [Variant.parse("odam")], masks=20, measures=measures)


class TestTheDemoRetinaNet:
    """What is robust of the papers' order, on a few scenes."""

    def test_odam_points_at_the_object_and_its_evidence(self, results: Results) -> None:
        assert results.estimate("odam", "pointing_box").mean > 0.8
        assert results.estimate("odam", "energy_box").mean > 0.75
        assert results.estimate("odam", "evidence_ratio").mean > 1.3
        assert results.estimate("odam", "odi_box").mean < 0.15

    def test_sides_lie_on_their_own_third(self, results: Results) -> None:
        (finding,) = findings(results)
        assert (finding.verdict, "side maps of odam" in finding.claim) == ("yes", True)

    def test_its_cost_is_told(self, results: Results, found: list[Case]) -> None:
        assert results.scenes == len(found)
        assert results.detections == sum(len(case.found) for case in found)
        assert len(results.seconds["odam"]) == len(found)
        assert results.samples == {"odam": 0}

    def test_the_classifier_alone_decides_the_class_map(self, engine: Engine, found: list[Case]) -> None:
        """Random box regression changes next to nothing; a random classifier leaves no more than chance."""
        before = {name: value.clone() for name, value in engine.detector.model.state_dict().items()}
        ticks: list[int] = []
        sanity = sanity_of(engine, found, [Variant.parse("odam")], tell=lambda: ticks.append(1))
        assert sanity.groups[:2] == ["head.regression_head", "head.classification_head"]
        assert sanity.rank("odam", 1).mean > 0.99  # not 1: Φ follows the decoded box
        assert sanity.structure("odam", 1).mean > 0.95
        assert sanity.rank("odam", 2).mean < 0.9
        assert sanity.left("odam").mean < 0.2
        assert len(ticks) == len(sanity.groups) + 1
        for name, value in engine.detector.model.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert len(report.sanity_table(sanity).splitlines()) == len(sanity.groups) + 3

    def test_it_does_not_read_the_marks_of_scenes_that_have_some(self, engine: Engine) -> None:
        """It keeps its score without them, and its maps lie elsewhere; a detector that cheats would not."""
        marked = [case for case in cases(engine, "cheat", 3, overlap=0.6, most=1) if case]
        results = measure_all(
            engine,
            iter(marked),
            [Variant.parse("odam")],
            masks=1,
            measures=["energy_box"],
            targets=["class"],
        )
        assert len(results.unmarked) == len(marked) == 3
        assert results.unmarked_estimate().mean == pytest.approx(1, abs=0.15)
        assert results.estimate("odam", ON_MARK).mean < 0.05
        text = report.table(results)
        assert "| energy_mark | 0.0" in text
        assert "Score with the mark removed, over the score with it: " in text

    def test_every_registered_method_gets_a_column(self, engine: Engine, found: list[Case]) -> None:
        variants = variants_of(engine, [])
        one = dataclasses.replace(found[0], found=found[0].found[:1])
        results = measure_all(
            engine, iter([one]), variants, masks=4, measures=["sparsity"], targets=["class"]
        )
        assert list(results.values) == [variant.label for variant in variants]
        for variant in variants:
            assert results.estimate(variant.label, "sparsity").count == 1


class TestSamples:
    @pytest.mark.parametrize(
        ("variant", "masks", "samples"),
        [
            ("d_rise", 7, 7),
            ("d_rise", 5000, 5000),
            ("d_rise:samples=200", 5000, None),  # told how many, so its own number
            ("odsmoothgrad", 500, None),  # its own number is small
            ("mask_out", 7, None),  # there is an end of them
            ("odam", 500, None),
        ],
    )
    def test_masks_are_of_methods_that_take_many(
        self, engine: Engine, found: list[Case], variant: str, masks: int, samples: int | None
    ) -> None:
        explaining = Explaining(engine.recipe, engine.detector, engine.model)
        question = question_of(
            engine.detector, explaining, found[0], Variant.parse(variant), ["class"], masks=masks, seed=0
        )
        assert question.samples == samples


class TestCommand:
    def test_it_prints_and_writes(self, tmp_path: Path) -> None:
        page = tmp_path / "results.md"
        arguments = ["evaluate", "--scenes", "2", "-m", "retinanet-signs", "--method", "odam"]
        arguments += ["--measure", "energy_box", "--measure", "evidence_ratio", "--randomise", "1"]
        arguments += ["--model-store", str(STORE), "--page", str(page)]
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        written = page.read_text()
        for text in (done.output, written):
            assert "| measure | odam |" in text
            assert "| evidence_ratio ↑ |" in text
            assert "| + head.classification_head |" in text
        assert written.startswith("<!-- whybox evaluate: begin -->")
        assert "IoU above 0.75" in written

    def test_kinds_of_nms(self, tmp_path: Path) -> None:
        page = tmp_path / "results.md"
        arguments = ["evaluate", "--nms", "--scenes", "1", "-m", "retinanet-signs"]
        arguments += ["--model-store", str(STORE), "--page", str(page)]
        done = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "AP50" in done.output
        assert "<!-- whybox evaluate --nms: begin -->" in page.read_text()

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--method", "odma"], "did you mean 'odam'"),
            (["--method", "odam@layer9"], "layer9"),
            (["--method", "odam:smoothing"], "expected NAME"),
            (["--measure", "odi"], "there is no measure 'odi'"),
            (["-m", "resnet"], "there is no recipe"),
            (["--page", "nowhere/results.md"], "there is no folder nowhere"),
            (["--scenes", "0"], "--scenes"),
        ],
    )
    def test_what_is_wrong_is_told_in_a_line(self, arguments: list[str], said: str) -> None:
        model = [] if "-m" in arguments else ["-m", "retinanet-signs"]
        page = [] if "--page" in arguments else ["--no-write"]
        whole = ["evaluate", "--scenes", "1", *model, *page, "--model-store", str(STORE), *arguments]
        done = CliRunner().invoke(main, whole)
        assert done.exit_code in (1, 2), done.output
        assert said in done.output
        assert "Traceback" not in done.output

    def test_a_model_of_other_labels(self, tmp_path: Path) -> None:
        path = write_recipe(tmp_path, "retinanet")
        with pytest.raises(ValueError, match="labels are not those of the scenes"):
            command.recipes_of(tmp_path, [str(path)])
        with pytest.raises(ValueError, match="no recipe with its weights"):
            command.recipes_of(tmp_path, [])

    def test_models_for_crowds(self) -> None:
        names = [path.stem for path in command.recipes_of(STORE, [], crowds=True)]
        assert "retinanet-signs" in names
        assert "retinanet-signs-context" not in names
        assert "retinanet-signs-context" in [path.stem for path in command.recipes_of(STORE, [])]


def test_options_have_their_documented_defaults() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(command.Options)}
    for parameter in main.commands["evaluate"].params:  # type: ignore[attr-defined]
        name = {"iou": "overlap", "randomise": "randomised"}.get(parameter.name, parameter.name)
        if name in ("masks", "detections", "overlap", "randomised", "seed"):
            assert parameter.default == defaults[name]
