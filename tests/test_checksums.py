"""Checksums of weights: what a recipe expects is what is packed, and what else comes is refused unread."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from builders import write_recipe
from whybox import archives
from whybox.archives import build
from whybox.checksums import check_weights, digest
from whybox.engine import Engine
from whybox.recipe import Recipe, RecipeError, dump_recipe, read_recipe
from whybox_client.cli import main
from whybox_client.models import Model

STORE = Path(__file__).parent.parent / "model_store"
CONTENT = b"some weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


def recipe(checksum: Any, source: str = "https://example.org/w.pth") -> Recipe:
    return Recipe("zoo", "torchvision", "small/fcos", ("a",), source=source, checksum=checksum)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.pth"
    path.write_bytes(CONTENT)
    return path


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestFiles:
    def test_digests_are_those_of_the_library(self, weights: Path) -> None:
        assert (digest(weights), digest(weights, "md5")) == (SHA256, MD5)

    @pytest.mark.parametrize(
        "checksum", [f"sha256:{SHA256}", f"sha256:{SHA256[:8]}", f"md5:{MD5}", f"md5:{MD5[:6]}", "", {}]
    )
    def test_the_right_weights(self, weights: Path, checksum: Any) -> None:
        check_weights(recipe(checksum), weights)

    @pytest.mark.parametrize(
        ("checksum", "says"),
        [
            (f"sha256:{MD5}", f"to have the sha256 {MD5} at its beginning; got {SHA256}"),
            (f"md5:{SHA256[:32]}", f"to have the md5 {SHA256[:32]}; got {MD5}"),
            (f"md5:{MD5[1:7]}", f"to have the md5 {MD5[1:7]} at its beginning; got {MD5}"),
        ],
    )
    def test_others_are_told_with_both(self, weights: Path, checksum: str, says: str) -> None:
        with pytest.raises(RecipeError) as caught:
            check_weights(recipe(checksum), weights)
        assert str(caught.value) == (
            f"zoo: checksum: expected {weights} {says}. Download it again from https://example.org/w.pth; "
            "or, if these are meant to be other weights than the recipe's, build with --no-checksum."
        )
        with pytest.raises(RecipeError, match=r"\. If these are meant .* build with --no-checksum\.$"):
            check_weights(recipe(checksum, source=""), weights)

    def test_a_folder_is_not_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(
            RecipeError, match=r"checksum: expected a file, of md5:123456; got .*--no-checksum"
        ):
            check_weights(recipe("md5:123456"), tmp_path)


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for name, content in (("model.safetensors", CONTENT), ("config.json", b"{}")):
            (tmp_path / name).write_bytes(content)
        return tmp_path

    @property
    def checksum(self) -> dict[str, str]:
        empty = hashlib.sha256(b"{}").hexdigest()
        return {"model.safetensors": f"sha256:{SHA256}", "config.json": f"sha256:{empty}"}

    def test_each_file_by_its_name(self, folder: Path) -> None:
        check_weights(recipe(self.checksum), folder)
        check_weights(recipe(self.checksum), folder / "model.safetensors")

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_one_that_is_another(self, folder: Path, name: str) -> None:
        (folder / name).write_bytes(b"[]")
        for given in (folder, folder / "model.safetensors"):
            with pytest.raises(RecipeError, match=rf"expected {re.escape(str(folder / name))} to have the"):
                check_weights(recipe(self.checksum), given)

    def test_one_that_is_missing(self, folder: Path) -> None:
        (folder / "config.json").unlink()
        with pytest.raises(RecipeError, match=r"expected the file .*config\.json, which is not there"):
            check_weights(recipe(self.checksum), folder)

    def test_a_file_that_the_recipe_does_not_name(self, folder: Path) -> None:
        (folder / "best.pth").write_bytes(CONTENT)
        with pytest.raises(RecipeError, match=r"expected model\.safetensors or config\.json; got best\.pth"):
            check_weights(recipe(self.checksum), folder / "best.pth")


@pytest.mark.parametrize(
    ("checksum", "says"),
    [
        ("280758", "checksum: expected sha256: or md5: and 6 or more .*; got '280758'"),
        ("md5:28075", "checksum: expected sha256: or md5: and 6 or more .*; got 'md5:28075'"),
        (f"md5:{SHA256}", "checksum: expected sha256: or md5:"),
        ("sha256:ABCDEF", "checksum: expected sha256: or md5: .*, in lower case"),
        (280758, "checksum: expected str; got '280758'"),
        ([], r"checksum: expected str; got '\[\]'"),
        ({"w.pth": "md5:"}, r"checksum\.w\.pth: expected sha256: or md5:"),
        ({"w.pth": None}, r"checksum\.w\.pth: expected sha256: or md5: .*; got 'None'"),
        ({"../w.pth": "md5:123456"}, r"checksum: expected names of files; got '\.\./w\.pth'"),
        ({"": "md5:123456"}, "checksum: expected names of files; got ''"),
        ({"..": "md5:123456"}, r"checksum: expected names of files; got '\.\.'"),
        ({3: "md5:123456"}, "checksum: expected names of files; got '3'"),
    ],
)
def test_what_is_no_checksum(tmp_path: Path, checksum: object, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    good = {"name": "a", "family": "torchvision", "architecture": "small/fcos", "labels": ["x"]}
    path.write_text(yaml.safe_dump({**good, "checksum": checksum}))
    with pytest.raises(RecipeError, match=says):
        read_recipe(path)


@pytest.mark.parametrize("checksum", ["md5:123456", {"w.pth": "sha256:123456"}])
def test_writing_is_the_inverse_of_reading(tmp_path: Path, checksum: Any) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe(checksum)))
    assert read_recipe(path) == recipe(checksum)


def test_the_stores_checksums_are_those_in_the_names_at_their_sources() -> None:
    """So torchvision (``check_hash``: SHA-256) and detectron2 (MODEL_ZOO.md: MD5) document their names."""
    kinds = {"torchvision": r"-(?P<sha256>[0-9a-f]{8})\.pth$", "detectron2": r"_(?P<md5>[0-9a-f]{6})\.pkl$"}
    checked = 0
    for path in STORE.glob("*.yaml"):
        zoo = read_recipe(path)
        found = re.search(kinds.get(zoo.family, "$^"), zoo.source)
        if found is None:
            assert zoo.checksum == "", path
            continue
        ((kind, digits),) = found.groupdict().items()
        assert zoo.checksum == f"{kind}:{digits}", path
        checked += 1
    assert checked == 9


class TestArchives:
    def test_an_archive_tells_its_weights(self, tmp_path: Path) -> None:
        random = tmp_path / "fcos-random.safetensors"
        path = write_recipe(tmp_path, "fcos")
        path.write_text(path.read_text() + f"checksum: sha256:{sha256_of(random)[:8]}\n")
        with zipfile.ZipFile(build(path, tmp_path / "store")) as archive:
            archive.extractall(tmp_path / "model")
        packed = read_recipe(tmp_path / "model" / "recipe.yaml")
        assert packed.checksum == f"sha256:{sha256_of(random)[:8]}"
        assert packed.packed_sha256 == sha256_of(tmp_path / "model" / "weights.safetensors")
        engine = Engine.load(packed, tmp_path / "model" / "weights.safetensors")
        assert Model.from_message(engine.model).weights_sha256 == packed.packed_sha256

    def test_others_are_refused_before_anything_reads_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_recipe(tmp_path, "fcos", checksum="md5:123456")

        def never(*_: object) -> None:
            raise AssertionError("the weights were read")

        monkeypatch.setattr(archives, "pack_detector", never)
        (tmp_path / "own.pth").write_bytes(CONTENT)
        for given in (None, tmp_path / "own.pth"):
            with pytest.raises(
                RecipeError, match=r"expected .* to have the md5 123456 at its beginning; got"
            ):
                build(path, tmp_path / "store", given)
        assert not (tmp_path / "store").exists()

    def test_the_plain_way_that_the_message_names(self, tmp_path: Path) -> None:
        path = write_recipe(tmp_path, "fcos", checksum="md5:123456")
        command = ["models", "build", str(path), "--out", str(tmp_path / "store")]
        refused = CliRunner().invoke(main, command)
        assert refused.exit_code == 1
        assert "build with --no-checksum" in " ".join(refused.output.split())
        done = CliRunner().invoke(main, [*command, "--no-checksum"])
        assert done.exit_code == 0, done.output
        with zipfile.ZipFile(tmp_path / "store" / "fcos-random.mar") as archive:
            packed = yaml.safe_load(archive.read("recipe.yaml"))
        assert packed["checksum"] == "", "it is not of these weights"
