"""Shards from lists of files: original bytes, keys and labels, missing files told, finished or not, the same again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED_DATA
from webvision_tree import WebVisionTree, build_webvision_tree

from trainref_ray.data.listed import ListedJob, begin, clear_leftovers, finish, finished, write_listed_shard
from trainref_ray.data.prepare import Prepared, PrepareResult, PrepareSettings, listed_splits, open_listed, prepare
from trainref_ray.data.samples import Sample, SampleFormat, read_samples
from trainref_ray.data.shards import check_end, resolve_shards
from trainref_ray.data.sources import ListedFile, ListedSource
from trainref_ray.data.tar_reader import iter_raw_samples
from trainref_ray.errors import ConfigError, ShardError


def source(folder: Path, files: int = 23) -> ListedSource:
    """Small files, the last one missing, in three classes sorted by class."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for number in range(files):
        if number < files - 1:
            (folder / f"{number}.jpg").write_bytes(f"{number} ".encode() * 300)
        listed.append(ListedFile(f"part/{number}", f"{number}.jpg", "jpg", number * 3 // files, {"query": "q"}))
    return ListedSource("letters", ("a", "b", "c"), folder, listed, known_truth=False)


def plan(listed: ListedSource, out: Path, **changes: int) -> ListedJob:
    job = start(listed, out, **changes)
    assert isinstance(job, ListedJob)
    return job


def start(listed: ListedSource, out: Path, **changes: int) -> ListedJob | PrepareResult:
    return begin(listed, str(out), split="train", **({"seed": 3, "shard_size": 5} | changes))


def write(job: ListedJob) -> PrepareResult:
    """Write what is not finished, the last shard first."""
    markers = finished(job)
    for shard in reversed(job.shards):
        if shard.name not in markers:
            markers[shard.name] = write_listed_shard(shard)
    return finish(job, markers)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def facts(folder: Path) -> list[tuple[str, bytes, dict]]:
    """Key, image and KEY.json of every sample, in order."""
    found = []
    for file in resolve_shards([f"{folder}/train-*.tar"]):
        assert check_end(file.url, file.bytes) is None
        with open(file.url, "rb") as stream:
            for sample in iter_raw_samples(stream, max_bytes=2**20):
                assert sample.error is None
                found.append((sample.key, sample.members["jpg"], json.loads(sample.members["json"])))
    return found


def test_every_file_is_there_once_with_its_bytes_and_facts(tmp_path: Path) -> None:
    listed = source(tmp_path / "in")
    result = write(plan(listed, tmp_path / "out"))
    assert result.shards == tuple(f"train-0000{number}.tar" for number in range(5))
    assert (result.samples, result.missing, result.first_missing, result.wrong) == (22, 1, ("22.jpg",), None)
    found = facts(tmp_path / "out")
    assert len(found) == 22
    assert sorted(found, key=lambda sample: int(sample[0].split("/")[1])) == [
        (f.key, f"{n} ".encode() * 300, {"label": f.label, "source": f.path, "query": "q"})
        for n, f in enumerate(listed.files[:22])
    ]
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["a", "b", "c"]


def test_missing_files_are_counted_named_and_listed_with_their_shard(tmp_path: Path) -> None:
    listed = source(tmp_path / "in", 60)
    for number in range(10):
        (tmp_path / "in" / f"{number}.jpg").unlink()
    (tmp_path / "in" / "10.jpg").unlink()
    (tmp_path / "in" / "10.jpg").mkdir()
    result = write(plan(listed, tmp_path / "out"))
    lines = (tmp_path / "out" / "train-missing.txt").read_text().splitlines()
    assert sorted(int(line.split(".")[0]) for line in lines) == [*range(11), 59]
    assert (result.samples, result.missing) == (48, 12)
    assert result.first_missing == tuple(line.split("\t")[0] for line in lines[:5])
    text = str(Prepared((result,)))
    assert text.startswith("train: 48 images in 12 shards, truth not known, 12 files missing (")
    assert text.endswith(f"{result.first_missing[-1]}, ...; all in train-missing.txt)")
    present = {key for key, _, _ in facts(tmp_path / "out")}
    for shard in plan(listed, tmp_path / "again").shards:
        for file in shard.files:
            assert (file.key in present) != (f"{file.path}\t{shard.name}" in lines)


def test_labels_that_are_true_are_written_as_true(tmp_path: Path) -> None:
    result = write(plan(replace(source(tmp_path / "in"), known_truth=True), tmp_path / "out"))
    assert all(fact["true_label"] == fact["label"] for _, _, fact in facts(tmp_path / "out"))
    assert (result.wrong, result.wrong_rate) == (0, 0.0)


def test_a_shard_holds_all_classes_of_a_sorted_list(tmp_path: Path) -> None:
    listed = source(tmp_path / "in", 300)
    first, other = plan(listed, tmp_path / "a", shard_size=60), plan(listed, tmp_path / "b", shard_size=60, seed=4)
    for shard in first.shards:
        assert np.bincount([file.label for file in shard.files], minlength=3).min() > 9  # 20 are expected
    assert [file.key for file in first.shards[0].files] != [file.key for file in other.shards[0].files]
    assert sorted(file.key for shard in first.shards for file in shard.files) == sorted(f.key for f in listed.files)


def test_another_time_nothing_is_written_and_another_folder_gets_the_same(tmp_path: Path) -> None:
    listed = source(tmp_path / "in")
    result = write(plan(listed, tmp_path / "out"))
    before = content(tmp_path / "out")
    assert start(listed, tmp_path / "out") == replace(result, written=False)
    assert content(tmp_path / "out") == before
    write(plan(listed, tmp_path / "other"))
    assert content(tmp_path / "other") == before


def _no_tar(out: Path) -> None:
    (out / "train-00002.tar").unlink()


def _no_marker(out: Path) -> None:
    (out / "done" / "train-00002.json").unlink()


def _cut_tar(out: Path) -> None:
    tar = out / "train-00002.tar"
    tar.write_bytes(tar.read_bytes()[:-512])


def _cut_marker(out: Path) -> None:
    marker = out / "done" / "train-00002.json"
    marker.write_bytes(marker.read_bytes()[:20])


def _foreign_marker(out: Path) -> None:
    marker = out / "done" / "train-00002.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"fingerprint": "of other settings"}))


@pytest.mark.parametrize("damage", [_no_tar, _no_marker, _cut_tar, _cut_marker, _foreign_marker])
def test_a_shard_without_its_tar_or_marker_is_written_again_and_no_other(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    listed = source(tmp_path / "in")
    out = tmp_path / "out"
    job = plan(listed, out)
    write(job)
    before = content(out)
    settings = json.loads(before["prepare.json"])
    (out / "prepare.json").write_text(json.dumps({"train": settings["train"] | {"result": None}}))  # interrupted
    damage(out)
    assert sorted(finished(job)) == [f"train-0000{number}.tar" for number in (0, 1, 3, 4)]
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    write(plan(listed, out))
    assert content(out) == before
    unchanged = {path.name for path in out.glob("*.tar") if path.stat().st_mtime_ns == times.get(path.name)}
    assert unchanged == {f"train-0000{number}.tar" for number in (0, 1, 3, 4)}


def test_files_that_have_come_since_are_taken_when_their_shard_is_removed(tmp_path: Path) -> None:
    listed = source(tmp_path / "in")
    write(plan(listed, tmp_path / "out"))
    path, shard = (tmp_path / "out" / "train-missing.txt").read_text().strip().split("\t")
    (tmp_path / "in" / path).write_bytes(b"late")
    assert isinstance(start(listed, tmp_path / "out"), PrepareResult)
    (tmp_path / "out" / shard).unlink()
    result = write(plan(listed, tmp_path / "out"))
    assert (result.samples, result.missing) == (23, 0)
    assert b"late" in [image for _, image, _ in facts(tmp_path / "out")]
    assert not (tmp_path / "out" / "train-missing.txt").exists()


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    job = plan(source(tmp_path / "in"), tmp_path / "out")
    (tmp_path / "out" / "done").mkdir()
    for name in (
        ".train-00000.tar.x1.part",
        "done/train-00000.json.x2.part",
        ".val-00000.tar.x3.part",
        "train-a.part.x",
    ):
        (tmp_path / "out" / name).write_bytes(b"half")
    clear_leftovers(job)
    left = {name for name, data in content(tmp_path / "out").items() if data == b"half"}
    assert left == {".val-00000.tar.x3.part", "train-a.part.x"}


def test_a_shard_whose_files_are_all_missing_is_empty_and_readable(tmp_path: Path) -> None:
    listed = source(tmp_path / "in", 6)
    for number in range(1, 6):
        (tmp_path / "in" / f"{number}.jpg").unlink(missing_ok=True)
    result = write(plan(listed, tmp_path / "out", shard_size=1))
    assert (result.samples, len(result.shards), result.missing) == (1, 6, 5)
    assert [key for key, _, _ in facts(tmp_path / "out")] == ["part/0"]


def test_other_settings_lists_and_classes_are_refused(tmp_path: Path) -> None:
    listed = source(tmp_path / "in")
    write(plan(listed, tmp_path / "out"))
    before = content(tmp_path / "out")
    changed = replace(listed, files=[*listed.files[:-1], replace(listed.files[-1], label=0)])
    for other, changes, named in (
        (listed, {"seed": 4}, "seed 3, now 4"),
        (listed, {"shard_size": 6}, "shard_size 5, now 6"),
        (changed, {}, "list "),
        (replace(listed, known_truth=True), {}, "list "),
    ):
        with pytest.raises(ConfigError, match=f"other settings .*{named}"):
            start(other, tmp_path / "out", **changes)
    with pytest.raises(ConfigError, match="names other classes"):
        begin(replace(listed, class_names=("x", "y", "z")), str(tmp_path / "out"), split="val", seed=0, shard_size=5)
    assert content(tmp_path / "out") == before


def test_files_that_are_all_missing_are_told_before_anything_is_written(tmp_path: Path) -> None:
    listed = source(tmp_path / "in")
    with pytest.raises(ConfigError, match=r"none of 23 files drawn from the lists is in .*nowhere, the first being \d"):
        start(replace(listed, root=tmp_path / "nowhere"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_worker_that_does_not_see_the_images_says_so(tmp_path: Path) -> None:
    job = plan(source(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(ShardError, match=r"elsewhere is not there on .*; every worker must see the images"):
        write_listed_shard(replace(job.shards[0], root=str(tmp_path / "elsewhere")))
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_file_that_cannot_be_read_is_not_taken_for_missing(tmp_path: Path) -> None:
    job = plan(source(tmp_path / "in"), tmp_path / "out")
    loop = tmp_path / "in" / job.shards[0].files[2].path
    loop.unlink(missing_ok=True)
    loop.symlink_to(loop)
    with pytest.raises(OSError, match=loop.name):
        write_listed_shard(job.shards[0])
    assert not list((tmp_path / "out").glob("*.tar"))
    assert not list((tmp_path / "out").glob(".*"))


def test_a_key_that_no_tar_can_hold_is_named(tmp_path: Path) -> None:
    listed = source(tmp_path / "in")
    bad = replace(listed, files=[replace(listed.files[0], key="part/a.b")])
    with pytest.raises(ConfigError, match=r"0\.jpg: key 'part/a\.b' cannot be written"):
        start(bad, tmp_path / "out")


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    out, root = str(tmp_path / "out"), str(tmp_path)
    for settings, message in (
        (PrepareSettings("webvision", out), "needs --root"),
        (PrepareSettings("webvision", out, root, noise="sym:0.2"), "has its own noise"),
        (PrepareSettings("animal10n", out, root, truth=True), "has its own noise"),
        (PrepareSettings("animal10n", out, root, splits=("val",)), "no split 'val'; allowed: train, test"),
        (PrepareSettings("webvision", out, root, splits=("test",)), "no split 'test'; allowed: train, val, imagenet"),
        (PrepareSettings("webvision", out, root, splits=("imagenet",)), "needs --imagenet"),
        (PrepareSettings("animal10n", out, root, imagenet="x"), "go with webvision, not with source animal10n"),
        (PrepareSettings("webvision_mini", out, root, shard_size=0), "at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            listed_splits(settings)
    with pytest.raises(ConfigError, match="go with webvision, not with source folder"):
        prepare(PrepareSettings("folder", out, root, imagenet="x"))
    with pytest.raises(ConfigError, match=r"use distributed\.prepare\.prepare_listed"):
        prepare(PrepareSettings("webvision", out, root))
    assert listed_splits(PrepareSettings("webvision", out, root)) == ("train", "val")
    assert listed_splits(PrepareSettings("webvision", out, root, imagenet="x")) == ("train", "val", "imagenet")
    assert listed_splits(PrepareSettings("animal10n", out, root)) == ("train", "test")


@pytest.fixture(scope="module")
def webvision(tmp_path_factory: pytest.TempPathFactory) -> WebVisionTree:
    if not (SHARED_DATA / "tinyimagenet").is_dir():
        pytest.skip(f"no photographs in {SHARED_DATA}; set TRAINREF_SHARED_DATA")
    return build_webvision_tree(tmp_path_factory.mktemp("tree"), SHARED_DATA, classes=52)


def read(folder: Path, split: str) -> dict[str, tuple[Sample, dict]]:
    """Every sample of a split as a curation reads it, and its KEY.json, by the path in the data set."""
    names = tuple(json.loads((folder / "classes.json").read_text()))
    expected = SampleFormat(classes=len(names), class_names=names)
    found = {}
    for file in resolve_shards([f"{folder}/{split}-*.tar"]):
        with open(file.url, "rb") as stream, open(file.url, "rb") as raw:
            members = [json.loads(sample.members["json"]) for sample in iter_raw_samples(raw, max_bytes=2**24)]
            for sample, fact in zip(read_samples(stream, expected), members, strict=True):
                found[fact["source"]] = (sample, fact)
    return found


@pytest.mark.parametrize("name", ["webvision", "webvision_mini"])
def test_webvision_as_a_whole(webvision: WebVisionTree, tmp_path: Path, name: str) -> None:
    labels = webvision.devkit / "ILSVRC2012_validation_ground_truth.txt"
    settings = PrepareSettings(  # type: ignore[arg-type]
        name, str(tmp_path), str(webvision.root), (), str(webvision.imagenet), str(labels), shard_size=100
    )
    results = {}
    for split in listed_splits(settings):
        job = begin(open_listed(settings, split), settings.out, split=split, seed=0, shard_size=100)
        assert isinstance(job, ListedJob)
        results[split] = write(job)
    mini = name == "webvision_mini"
    classes = 50 if mini else 52
    assert json.loads((tmp_path / "classes.json").read_text()) == webvision.names[:classes]
    wanted = {path for path, label in webvision.labels.items() if label < classes}
    train = {path for path in wanted if path.startswith("google/" if mini else ("google/", "flickr/"))}
    for split, paths in (("train", train), ("val", {path for path in wanted if path.startswith("val_images_256/")})):
        samples = read(tmp_path, split)
        gone = paths & set(webvision.missing)
        assert set(samples) == paths - gone
        assert (results[split].samples, results[split].missing) == (len(samples), len(gone))
        assert {line.split("\t")[0] for line in (tmp_path / f"{split}-missing.txt").read_text().splitlines()} == gone
        for path, (sample, fact) in samples.items():
            label = webvision.labels[path]
            original = (webvision.root / path).read_bytes()
            assert sample.image_bytes == original if original else sample.error
            assert (sample.error is None) == (path not in webvision.corrupt), sample.error
            assert (sample.label, sample.true_label) == (label, label if split == "val" else None)
            assert fact["synset"] == webvision.wnids[label]
            if split == "train":
                assert fact["query"] == f"{webvision.names[label]} {path.split('/')[0]}"
        assert len({sample.key for sample, _ in samples.values()}) == len(samples)
    imagenet = read(tmp_path, "imagenet")
    assert {path: fact["synset"] for path, (_, fact) in imagenet.items()} == {
        path: wnid for path, wnid in webvision.imagenet_wnids.items() if wnid in webvision.wnids[:classes]
    }
    for path, (sample, fact) in imagenet.items():
        assert sample.image_bytes == (webvision.imagenet / path).read_bytes()
        assert webvision.wnids[sample.label or 0] == fact["synset"]
        assert sample.true_label == sample.label
