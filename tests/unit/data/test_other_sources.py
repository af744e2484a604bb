"""ImageNet's validation images in every form that is around, and Animal-10N."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SHARED_DATA
from webvision_tree import WebVisionTree, build_webvision_tree

from trainref_ray.data.sources import ListedSource
from trainref_ray.data.sources.animal10n import animal10n_source
from trainref_ray.data.sources.imagenet import imagenet_source
from trainref_ray.errors import ConfigError

needs_photographs = pytest.mark.skipif(
    not (SHARED_DATA / "tinyimagenet").is_dir(),
    reason=f"no photographs in {SHARED_DATA}; set TRAINREF_SHARED_DATA",
)
NAMES = ("ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00000003.JPEG")
WNIDS = ("n01443537", "n09999999", "n01440764")


def source(folder: Path, labels: str | None = None) -> ListedSource:
    file = None
    if labels is not None:
        file = folder / "labels.txt"
        file.write_text(labels)
    return imagenet_source(folder, file, ["n01440764", "n01443537"], ("tench", "goldfish"))


@pytest.mark.parametrize(
    "labels",
    [
        "".join(f"{name} {wnid}\n" for name, wnid in zip(NAMES, WNIDS, strict=True)),
        "".join(f"{name}\t{wnid}\textra\n" for name, wnid in zip(NAMES, WNIDS, strict=True)),
        "\n".join(WNIDS),
        "ImageId,PredictionString\n"
        + "".join(f"{name[:-5]},{wnid} 85 1 499 272 \n" for name, wnid in zip(NAMES, WNIDS, strict=True)),
    ],
    ids=["name and number", "tabs and more columns", "numbers in order", "Kaggle's file"],
)
def test_labels_are_places_among_the_wanted_classes(tmp_path: Path, labels: str) -> None:
    found = source(tmp_path, labels)
    assert (found.name, found.known_truth, found.class_names) == ("imagenet", True, ("tench", "goldfish"))
    assert [(file.key, file.path, file.extension, file.label, file.extra) for file in found.files] == [
        ("ILSVRC2012_val_00000001", NAMES[0], "jpg", 1, {"synset": "n01443537"}),
        ("ILSVRC2012_val_00000003", NAMES[2], "jpg", 0, {"synset": "n01440764"}),
    ]


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for name, wnid in zip(NAMES, WNIDS, strict=True):
        (tmp_path / wnid).mkdir()
        (tmp_path / wnid / name).write_bytes(b"")
    (tmp_path / "n01440764" / "notes.txt").write_text("x")
    assert [(file.key, file.path, file.label) for file in source(tmp_path).files] == [
        ("ILSVRC2012_val_00000003", f"n01440764/{NAMES[2]}", 0),
        ("ILSVRC2012_val_00000001", f"n01443537/{NAMES[0]}", 1),
    ]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (f"{NAMES[0]} 65\n", r"entry 1 of .* 'ILSVRC2012_val_00000001\.JPEG 65'; allowed are"),
        (f"n01440764\n../{NAMES[0]} n01440764\n", r"entry 2 of .*; allowed are"),
        ("490\n361\n", r"devkit's numbers, whose meaning stands in the devkit's meta\.mat"),
        ("n09999999\n", "none of 1 images is of one of the 2 classes"),
        ("", "none of 0 images"),
    ],
)
def test_labels_that_say_nothing_are_refused(tmp_path: Path, labels: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(tmp_path, labels)


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ImageNet folder .*none does not exist"):
        source(tmp_path / "none")
    with pytest.raises(ConfigError, match="give --imagenet-labels FILE"):
        source(tmp_path)
    with pytest.raises(ConfigError, match=r"none\.txt does not exist"):
        imagenet_source(tmp_path, tmp_path / "none.txt", ["n01440764"], ("tench",))
    (tmp_path / "meta.mat").write_text("no table")
    with pytest.raises(ConfigError, match=r"meta\.mat is not the devkit's table"):
        source(tmp_path, "490\n")


@pytest.fixture(scope="module")
def webvision(tmp_path_factory: pytest.TempPathFactory) -> WebVisionTree:
    return build_webvision_tree(tmp_path_factory.mktemp("tree"), SHARED_DATA, classes=4)


@needs_photographs
def test_the_devkits_numbers_are_not_labels(webvision: WebVisionTree) -> None:
    labels = webvision.devkit / "ILSVRC2012_validation_ground_truth.txt"
    found = imagenet_source(webvision.imagenet, labels, webvision.wnids, tuple(webvision.names))
    assert {file.path: webvision.wnids[file.label] for file in found.files} == webvision.imagenet_wnids
    assert {int(line) for line in labels.read_text().split()} == {1, 2, 3, 4}


def animals(root: Path) -> Path:
    """Photographs of animals under Animal-10N's names: training and testing folder, label and number in the name."""
    tree = build_webvision_tree(root / "tree", SHARED_DATA, classes=10, google=3, flickr=1)
    for folder, pattern in (("training", "google/*/*"), ("testing", "val_images_256/*")):
        (root / folder).mkdir()
        for number, path in enumerate(sorted(tree.root.glob(pattern))):
            label = tree.labels[path.relative_to(tree.root).as_posix()]
            (root / folder / f"{label}_{number}.jpg").write_bytes(path.read_bytes())
    return root


@needs_photographs
def test_animal10n(tmp_path: Path) -> None:
    root = animals(tmp_path)
    (root / "training" / "Thumbs.db").write_bytes(b"")
    train, test = animal10n_source(root, "train"), animal10n_source(root, "test")
    assert train.class_names[:2] + train.class_names[-1:] == ("cat", "lynx", "guinea pig")
    assert (train.known_truth, test.known_truth) == (False, True)
    assert (train.ignored_files, test.ignored_files) == (1, 0)
    assert len(train.files) == len(list((root / "training").glob("*.jpg"))) == 40
    for file in train.files + test.files:
        folder, name = file.path.split("/")
        assert file.key == f"{'train' if folder == 'training' else 'test'}/{name.removesuffix('.jpg')}"
        assert file.label == int(name.split("_")[0])
        assert (root / file.path).is_file()


def test_animal10n_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no folder training/"):
        animal10n_source(tmp_path, "train")
    (tmp_path / "training").mkdir()
    with pytest.raises(ConfigError, match="there is no image"):
        animal10n_source(tmp_path, "train")
    (tmp_path / "training" / "10_1.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"'10_1\.jpg' does not begin with its label, 0_ to 9_"):
        animal10n_source(tmp_path, "train")
