"""WebVision's lists: paths, labels and queries as they stand there, and every damaged line named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainref_ray.data.shards import check_key
from trainref_ray.data.sources import split_path, stored_extension, unique_key
from trainref_ray.data.sources.webvision import Synset, class_names, webvision_source
from trainref_ray.errors import ConfigError

LISTS = {
    "synsets.txt": "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn01484850 white shark\n",
    "queries_synsets_map.txt": "1 1\n2 1\n3 2\n4 3\n",
    "queries_google.txt": "1 tench\n2 Tinca tinca\n3 goldfish\n4 white shark\n",
    "queries_flickr.txt": "1 tench fish\n2 Tinca tinca\n3 goldfish\n4 white shark\n",
    "train_filelist_google.txt": "google/q0001/aa.jpg 0\ngoogle/q0002/b b.c.JPEG 0\ngoogle/q0004/dd 2\n",
    "train_filelist_flickr.txt": "flickr/q0003/123.png 1\n",
    "val_filelist.txt": "val000001.jpg 2\nval000002.jpg 0\n",
}


def tree(root: Path, **changes: str | None) -> Path:
    """A tree without images; a list is changed by its name without `.txt`, or left out."""
    (root / "info").mkdir(parents=True)
    for folder in ("google", "flickr", "val_images_256"):
        (root / folder).mkdir()
    for name, text in (LISTS | {f"{name}.txt": text for name, text in changes.items()}).items():  # type: ignore[operator]
        if text is not None:
            (root / "info" / name).write_text(text, encoding="utf-8")
    return root


def test_training_files_of_both_parts(tmp_path: Path) -> None:
    source = webvision_source(tree(tmp_path), "train")
    assert (source.name, source.known_truth, source.root) == ("webvision", False, tmp_path)
    assert source.class_names == ("tench", "goldfish", "white shark")
    assert [(f.key, f.path, f.extension, f.label, f.extra) for f in source.files] == [
        ("google/q0001/aa", "google/q0001/aa.jpg", "jpg", 0, {"synset": "n01440764", "query": "tench"}),
        ("google/q0002/b b_c", "google/q0002/b b.c.JPEG", "jpg", 0, {"synset": "n01440764", "query": "Tinca tinca"}),
        ("google/q0004/dd", "google/q0004/dd", "jpg", 2, {"synset": "n01484850", "query": "white shark"}),
        ("flickr/q0003/123", "flickr/q0003/123.png", "png", 1, {"synset": "n01443537", "query": "goldfish"}),
    ]


def test_validation_files(tmp_path: Path) -> None:
    source = webvision_source(tree(tmp_path), "val")
    assert source.known_truth
    assert [(f.key, f.path, f.label, f.extra) for f in source.files] == [
        ("val000001", "val_images_256/val000001.jpg", 2, {"synset": "n01484850"}),
        ("val000002", "val_images_256/val000002.jpg", 0, {"synset": "n01440764"}),
    ]


def test_mini_is_the_first_classes_of_google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainref_ray.data.sources.webvision.MINI_CLASSES", 2)
    root = tree(tmp_path, train_filelist_flickr=None, queries_flickr=None)
    (root / "flickr").rmdir()
    train, val = webvision_source(root, "train", mini=True), webvision_source(root, "val", mini=True)
    assert train.class_names == val.class_names == ("tench", "goldfish")
    assert [file.path for file in train.files] == ["google/q0001/aa.jpg", "google/q0002/b b.c.JPEG"]
    assert [file.path for file in val.files] == ["val_images_256/val000002.jpg"]


def test_texts_of_queries_may_be_missing(tmp_path: Path) -> None:
    files = webvision_source(tree(tmp_path, queries_google=None), "train").files
    assert files[0].extra == {"synset": "n01440764"}
    assert files[3].extra == {"synset": "n01443537", "query": "goldfish"}


def test_two_files_of_one_key(tmp_path: Path) -> None:
    names = ("a.b.jpg", "a_b.jpg", "a_b.png")
    root = tree(tmp_path, train_filelist_google="".join(f"google/q0001/{name} 0\n" for name in names))
    keys = [file.key for file in webvision_source(root, "train").files]
    assert keys[:3] == ["google/q0001/a_b", "google/q0001/a_b-2", "google/q0001/a_b-3"]


def test_classes_of_one_name_are_told_apart() -> None:
    synsets = [Synset("n02012849", "crane"), Synset("n01443537", "goldfish, carp"), Synset("n03126707", "crane, hoist")]
    assert class_names(synsets) == ("crane (n02012849)", "goldfish", "crane (n03126707)")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"synsets": None}, r"synsets\.txt does not exist; give the folder where WebVision 1\.0"),
        ({"synsets": "n01440764 tench\ntench\n"}, r"synsets\.txt line 2: 'tench' is not of the form"),
        ({"synsets": "n01440764 tench\n"}, "has 1 classes; at least 2"),
        ({"queries_synsets_map": "1 1\n2 x\n"}, r"queries_synsets_map\.txt line 2: '2 x' is not of the form"),
        ({"queries_synsets_map": "1 1\n2 4\n"}, r"line 2: synset 4 is not one of 1 to 3"),
        ({"queries_synsets_map": "1 0\n"}, r"line 1: synset 0 is not one of 1 to 3"),
        ({"queries_synsets_map": "1 1\n1 2\n"}, "line 2: query 1 comes twice"),
        ({"queries_google": "tench\n"}, r"queries_google\.txt line 1: 'tench' is not of the form 'QUERY TEXT'"),
        ({"train_filelist_flickr": None}, r"train_filelist_flickr\.txt does not exist"),
        ({"train_filelist_google": "google/q0001/aa.jpg\n"}, "line 1: 'google/q0001/aa.jpg' is not of the form"),
        ({"train_filelist_google": "\ngoogle/q0001/aa.jpg 3\n"}, r"line 2: label 3 is not in info/synsets.txt, 0 to 2"),
        ({"train_filelist_google": "google/q0001/aa.jpg -1\n"}, "line 1: .* is not of the form 'PATH LABEL'"),
        ({"train_filelist_google": "google/q0001/../../../etc/x 0\n"}, "line 1: .* leads out of the data set"),
        ({"train_filelist_google": "/etc/x 0\n"}, "line 1: '/etc/x' leads out of the data set"),
        ({"train_filelist_google": "flickr/q0001/aa.jpg 0\n"}, "line 1: .* is not of the form google/q0001/NAME"),
        ({"train_filelist_google": "google/aa.jpg 0\n"}, "line 1: .* is not of the form google/q0001/NAME"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, changes: dict[str, str | None], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        webvision_source(tree(tmp_path, **changes), "train")


def test_a_label_that_contradicts_its_query_is_named_and_all_are_counted(tmp_path: Path) -> None:
    listed = "google/q0001/a.jpg 0\ngoogle/q0003/b.jpg 0\ngoogle/q0002/c.jpg 1\ngoogle/q0004/d.jpg 2\n"
    with pytest.raises(ConfigError, match=r"line 2: google/q0003/b\.jpg has label 0, but query 3 .* label 1; 2 of 4"):
        webvision_source(tree(tmp_path / "a", train_filelist_google=listed), "train")
    with pytest.raises(ConfigError, match=r"line 1: google/q0587/a\.jpg is of query 587, which the map has not; 1 "):
        webvision_source(tree(tmp_path / "b", train_filelist_google="google/q0587/a.jpg 0\n"), "train")


def test_text_that_is_no_utf8_is_told(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "info" / "val_filelist.txt").write_bytes(b"val\xff.jpg 0\n")
    with pytest.raises(ConfigError, match=r"val_filelist\.txt is no UTF-8 text"):
        webvision_source(root, "val")


@pytest.mark.parametrize(("folder", "split"), [("google", "train"), ("flickr", "train"), ("val_images_256", "val")])
def test_a_missing_folder_is_named(tmp_path: Path, folder: str, split: str) -> None:
    root = tree(tmp_path)
    (root / folder).rmdir()
    with pytest.raises(ConfigError, match=f"has no folder {folder}/"):
        webvision_source(root, split)


def test_lists_without_images_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name no val image of the first 3 classes"):
        webvision_source(tree(tmp_path, val_filelist="\n"), "val")


NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1)


@given(st.lists(NAMES.filter(lambda name: name not in (".", "..")), max_size=20))
def test_every_file_name_gets_a_key_of_its_own_that_a_tar_can_hold(names: list[str]) -> None:
    taken: set[str] = set()
    keys = []
    for name in names:
        key, extension = split_path(f"google/q0001/{name}")
        keys.append(unique_key(key, taken))
        check_key(keys[-1])
        assert stored_extension(extension) in ("jpg", "png", "webp")
    assert len(set(keys)) == len(names)
