"""Shards from sources: what is in them, the same again, nothing written twice, nothing overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trainref_ray.cli import prepare_command
from trainref_ray.data import prepare as module
from trainref_ray.data.prepare import Prepared, PrepareSettings, prepare, prepare_digits, write_shards
from trainref_ray.data.samples import Sample, SampleFormat, read_samples
from trainref_ray.data.shards import resolve_shards
from trainref_ray.data.sources import Source
from trainref_ray.data.sources.cifar import array_source
from trainref_ray.data.sources.digits import to_png
from trainref_ray.errors import ConfigError


def read(*patterns: str, classes: int = 10) -> list[Sample]:
    return [
        sample
        for file in resolve_shards(patterns)
        for sample in read_samples(open(file.url, "rb"), SampleFormat(classes=classes))
    ]


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    prepare_digits(folder)
    return folder


def images(n: int = 40) -> Source:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
    return array_source("cifar10", pixels, np.arange(n) % 10, [f"class {c}" for c in range(10)], "train")


def write(folder: Path, source: Source | None = None, **changes: object) -> module.PrepareResult:
    arguments: dict[str, object] = {"split": "train", "noise": "sym:0.5", "seed": 1, "shard_size": 15} | changes
    return write_shards(source or images(), str(folder), **arguments)  # type: ignore[arg-type]


def test_embedded_sample(embedded: Path) -> None:
    assert sorted(path.name for path in embedded.iterdir()) == [
        "classes.json",
        "prepare.json",
        "test-00000.tar",
        *(f"train-0000{n}.tar" for n in range(4)),
    ]
    names = json.loads((embedded / "classes.json").read_text())
    assert (names[0], names[9], len(names)) == ("zero", "nine", 10)
    train, test = read(f"{embedded}/train-*.tar"), read(f"{embedded}/test-*.tar")
    assert all(sample.error is None for sample in train + test)
    assert (len(train), len(test)) == (1547, 400)
    assert not {sample.key for sample in train} & {sample.key for sample in test}
    known = [sample for sample in train if sample.true_label != -1]
    assert sum(sample.label != sample.true_label for sample in known) == 559  # 40 % of 1,397
    foreign = [sample for sample in train if sample.true_label == -1]
    assert len(foreign) == 150
    assert len({sample.label for sample in foreign}) == 10
    per_shard = [
        sum(s.true_label == -1 for s in read(f"{embedded}/train-0000{n}.tar")) for n in range(4)
    ]  # mixed, not at the end
    assert min(per_shard) > 20
    assert all(sample.label == sample.true_label for sample in test)


def test_a_second_time_nothing_is_written_and_another_folder_gets_the_same(embedded: Path, tmp_path: Path) -> None:
    before = state(embedded)
    results = prepare_digits(embedded)
    assert state(embedded) == before
    assert [result.written for result in results.splits] == [False, False]
    prepare_digits(tmp_path)
    assert {name: content for name, (_, content) in state(tmp_path).items()} == {
        name: content for name, (_, content) in before.items()
    }
    other = tmp_path / "seed"
    prepare_digits(other, seed=1)
    assert (other / "train-00000.tar").read_bytes() != (embedded / "train-00000.tar").read_bytes()


def test_counts_are_those_of_the_shards(tmp_path: Path) -> None:
    result = write(tmp_path)
    samples = read(str(tmp_path))
    wrong = sum(sample.label != sample.true_label for sample in samples)
    assert (result.samples, len(result.shards), result.wrong, result.foreign) == (40, 3, wrong, 0)
    assert result.wrong_rate == wrong / 40
    assert str(Prepared((result,))) == f"train: 40 images in 3 shards, {wrong / 40:.1%} of the labels wrong"


@pytest.mark.parametrize(
    ("change", "named"), [({"noise": "none"}, "noise 'sym:0.5', now 'none'"), ({"seed": 2}, "seed")]
)
def test_other_settings_are_refused(tmp_path: Path, change: dict[str, object], named: str) -> None:
    write(tmp_path)
    before = state(tmp_path)
    with pytest.raises(ConfigError, match=f"other settings .*{named}"):
        write(tmp_path, **change)
    with pytest.raises(ConfigError, match=r"other settings .*labels"):
        write(tmp_path, images(41))
    assert state(tmp_path) == before


def test_foreign_shards_and_classes_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train-00000.tar").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"unknown origin \(train-00000\.tar\)"):
        write(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "classes.json").write_text('["x", "y"]')
    with pytest.raises(ConfigError, match="names other classes"):
        write(tmp_path / "b")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["classes.json"]


def test_an_interrupted_writing_is_done_again(tmp_path: Path) -> None:
    whole = images()

    def breaks_off() -> object:
        for number, sample in enumerate(whole.samples()):
            if number == 20:
                raise KeyboardInterrupt
            yield sample

    broken = Source(whole.name, whole.class_names, whole.labels, breaks_off, confusion=whole.confusion)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, broken)
    assert (tmp_path / "train-00000.tar").exists()
    assert write(tmp_path).written
    assert len(read(str(tmp_path))) == 40
    (tmp_path / "train-00001.tar").unlink()
    assert write(tmp_path).written
    assert not write(tmp_path).written


def test_cifar_noise_kinds(tmp_path: Path) -> None:
    human = np.zeros(40, np.int64)
    np.save(tmp_path / "human.npy", human)
    assert write(tmp_path / "h", noise=f"human:{tmp_path}/human.npy").wrong == 36
    asym = write(tmp_path / "a", noise="asym:1")
    assert asym.wrong == 20
    instance = write(tmp_path / "i", images(400), noise="instance:0.4")
    assert instance.wrong_rate == pytest.approx(0.4, abs=0.1)


def folder_of_images(root: Path) -> Path:
    for name in ("ant", "bee"):
        (root / name).mkdir(parents=True)
        for number in range(3):
            (root / name / f"{number}.png").write_bytes(to_png(np.full((4, 4), number, np.uint8)))
    (root / "ant" / "readme.txt").write_text("x")
    return root


def test_a_folder_has_no_truth_unless_told_or_made_noisy(tmp_path: Path) -> None:
    root = str(folder_of_images(tmp_path / "in"))

    def truths(out: str, **options: object) -> tuple[set[int | None], Prepared]:
        settings = PrepareSettings("folder", str(tmp_path / out), root, **options)  # type: ignore[arg-type]
        result = prepare(settings)
        return {sample.true_label for sample in read(str(tmp_path / out), classes=2)}, result

    known, result = truths("plain")
    assert known == {None}
    assert str(result) == "train: 6 images in 1 shards, truth not known, 1 other files passed over"
    assert truths("told", truth=True)[0] == {0, 1}
    assert truths("noisy", noise="symflip:0.5")[0] == {0, 1}


def test_source_and_root_may_be_the_first_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(folder_of_images(tmp_path / "in"))
    for out, words in (
        ("a", ["folder", root]),
        ("b", ["folder", "--root", root]),
        ("c", ["--source", "folder", "--root", root]),
    ):
        assert prepare_command([*words, "--out", str(tmp_path / out), "--shard-size", "4"]) == 0
    assert state_bytes(tmp_path / "a") == state_bytes(tmp_path / "b") == state_bytes(tmp_path / "c")
    assert len(state_bytes(tmp_path / "a")) == 4
    assert prepare_command(["cifar10", "--out", str(tmp_path / "d")]) == 2
    assert capsys.readouterr().err == "error: source cifar10 needs --root, the folder with its images\n"
    with pytest.raises(SystemExit) as caught:
        prepare_command(["folder", root, "more", "--out", str(tmp_path / "d")])
    assert caught.value.code == 2


def state_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_noise_is_put_into_the_training_split_alone(tmp_path: Path) -> None:
    for split in ("train", "val"):
        folder_of_images(tmp_path / "in" / split)
    settings = PrepareSettings(
        "folder", str(tmp_path / "out"), str(tmp_path / "in"), ("train", "val"), noise="symflip:1"
    )
    assert [split.wrong for split in prepare(settings).splits] == [6, None]


def test_splits_of_a_folder_and_a_clean_test_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder_of_images(tmp_path / "in" / split)
    settings = PrepareSettings(
        "folder", str(tmp_path / "out"), str(tmp_path / "in"), ("train", "test"), noise="symflip:1", shard_size=4
    )
    train, test = prepare(settings).splits
    assert (train.wrong, train.shards) == (6, ("train-00000.tar", "train-00001.tar"))
    assert test.wrong is None


def test_settings_that_do_not_fit(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    for settings, message in (
        (PrepareSettings("cifar10", out), "needs --root"),
        (PrepareSettings("cifar10", out, str(tmp_path)), "not found or corrupted"),
        (PrepareSettings("cifar10", out, str(tmp_path), ("val",)), "no split 'val'; allowed: train, test"),
        (PrepareSettings("digits", out, noise="sym:0.2"), "--noise cannot be chosen"),
        (PrepareSettings("digits", out, out, shard_size=7), "--root, --shard-size cannot be chosen"),
        (PrepareSettings("folder", out, str(tmp_path), ("val",), noise="sym:0.2"), "for the split train alone"),
        (PrepareSettings("folder", out, str(tmp_path), noise="salt:1"), "allowed: none, sym"),
        (PrepareSettings("folder", out, str(tmp_path), shard_size=0), "at least 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            prepare(settings)
    assert not os.path.exists(out)


def test_reading_and_preparing_need_no_torch_until_they_write() -> None:
    code = "import sys, trainref_ray.data.prepare, trainref_ray.data.samples; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
