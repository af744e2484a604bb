"""Writes a source's images as shards with given and true labels: `SPLIT-*.tar`, `classes.json` and `prepare.json`.

The same settings write the same files, and a second time nothing; other settings are refused. Sources that are lists of
files (`LISTED`) are opened here and written on Ray, by `trainref_ray.distributed.prepare`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainref_ray.data.images import ImageError, decode
from trainref_ray.data.noise import inject, parse_noise
from trainref_ray.data.shards import ShardWriter
from trainref_ray.data.sources import ListedSource, Source, SourceSample
from trainref_ray.data.sources.animal10n import animal10n_source
from trainref_ray.data.sources.cifar import cifar_source
from trainref_ray.data.sources.digits import digits_source
from trainref_ray.data.sources.folder import folder_source
from trainref_ray.data.sources.imagenet import imagenet_source
from trainref_ray.data.sources.webvision import class_names, read_synsets, webvision_source
from trainref_ray.errors import ConfigError
from trainref_ray.run import Storage

FORMAT_VERSION = 1
"""Raised when the code writes other shards for equal settings."""
MARKER = "prepare.json"
CLASSES = "classes.json"
DIGITS_NOISE = "symflip:0.4"
DIGITS_SHARD_SIZE = 400
"""1,547 training samples in four shards, 400 test samples in one."""
NOT_OF_DIGITS = ("root", "splits", "noise", "truth", "download", "shard_size")
"""Settings that the embedded sample does not read."""
FEATURE_SIDE = 32
"""Instance-dependent noise looks at pixels, 32 x 32 RGB as in Xia et al. 2020."""
LISTED: dict[str, tuple[str, ...]] = {
    "webvision": ("train", "val", "imagenet"),
    "webvision_mini": ("train", "val", "imagenet"),
    "animal10n": ("train", "test"),
}
"""Sources that are lists of files, and their splits."""
MISSING_SHOWN = 5
"""Missing files that are named in the result; all of them stand in `SPLIT-missing.txt`."""


@dataclass(frozen=True)
class PrepareSettings:
    """What to write where."""

    source: Literal["digits", "cifar10", "cifar100", "folder", "animal10n", "webvision", "webvision_mini"]
    """Where the images come from; digits is the embedded sample, with its own noise; webvision_mini are WebVision's
    first 50 classes, Google part."""
    out: str
    """Folder or object-store URL for the shards."""
    root: str | None = None
    """Folder of CIFAR's Python archive, of one sub-folder of images a class, or where Animal-10N or WebVision 1.0 is
    unpacked."""
    splits: tuple[str, ...] = ()
    """Splits to write: by default all there are, of a folder train alone; several of a folder are its sub-folders."""
    imagenet: str | None = None
    """With WebVision: folder with ImageNet's validation images, written as the split imagenet, a second test set."""
    imagenet_labels: str | None = None
    """Labels of ImageNet's images, where they are not in a sub-folder a class: lines NAME WNID, lines WNID, or the
    devkit's numbers with its meta.mat beside."""
    noise: str = "none"
    """Noise of the training labels: none, sym:R, symflip:R, asym:R (CIFAR), instance:R or human:FILE."""
    truth: bool = False
    """A folder's labels are true: write them as true labels, though no noise is added."""
    download: bool = False
    """Fetch CIFAR if it is missing."""
    shard_size: int = 2000
    """Samples of a shard."""
    seed: int = 0
    """Of the noise, of the digits' split, and of the order of images in WebVision and Animal-10N."""


@dataclass(frozen=True)
class PrepareResult:
    """What one split holds.

    Attributes:
        split: its name.
        shards: names of the tars.
        samples: images.
        wrong: images of a class whose given label is another one; None where the truth is not known.
        foreign: images of no class.
        ignored_files: files of the source that are no images.
        written: false when the same shards were there already.
        missing: files that a list names and that are not there.
        first_missing: the first of them.
    """

    split: str
    shards: tuple[str, ...]
    samples: int
    wrong: int | None
    foreign: int
    ignored_files: int = 0
    written: bool = True
    missing: int = 0
    first_missing: tuple[str, ...] = ()

    @property
    def wrong_rate(self) -> float | None:
        """Share of wrong labels among the images of a class; None where the truth is not known."""
        known = self.samples - self.foreign
        return None if self.wrong is None or not known else self.wrong / known

    def __str__(self) -> str:
        noise = "truth not known" if self.wrong_rate is None else f"{self.wrong_rate:.1%} of the labels wrong"
        foreign = f", {self.foreign:,} foreign images" if self.foreign else ""
        ignored = f", {self.ignored_files:,} other files passed over" if self.ignored_files else ""
        missing = f", {self.missing:,} files missing ({self._named()})" if self.missing else ""
        state = "" if self.written else " (there already, nothing written)"
        counts = f"{self.samples:,} images in {len(self.shards)} shards, {noise}{foreign}{ignored}{missing}"
        return f"{self.split}: {counts}{state}"

    def _named(self) -> str:
        more = ", ..." if self.missing > len(self.first_missing) else ""
        return f"{', '.join(self.first_missing)}{more}; all in {missing_name(self.split)}"


@dataclass(frozen=True)
class Prepared:
    """The splits written, one line each as text."""

    splits: tuple[PrepareResult, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.splits))


def missing_name(split: str) -> str:
    """Name of the list of a split's missing files, beside the shards."""
    return f"{split}-missing.txt"


def prepare(settings: PrepareSettings) -> Prepared:
    """Write the splits of a source that is no list of files as shards.

    Raises:
        ConfigError: a setting that does not fit the source, missing files, or other shards in the folder.
    """
    if settings.source in LISTED:
        raise ConfigError(f"source {settings.source} is a list of files: use distributed.prepare.prepare_listed")
    parse_noise(settings.noise)
    _check_shard_size(settings)
    if settings.imagenet or settings.imagenet_labels:
        raise ConfigError(f"--imagenet and --imagenet-labels go with webvision, not with source {settings.source}")
    if settings.source == "digits":
        ignored = [name for name in NOT_OF_DIGITS if getattr(settings, name) != getattr(PrepareSettings, name)]
        if ignored:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
            raise ConfigError(
                f"digits come with the project and are written with {DIGITS_NOISE} noise, both splits, "
                f"{DIGITS_SHARD_SIZE} samples a shard; {options} cannot be chosen"
            )
        return prepare_digits(settings.out, settings.seed)
    _check_root(settings)
    splits = settings.splits or (("train",) if settings.source == "folder" else ("train", "test"))
    if settings.noise != "none" and "train" not in splits:
        raise ConfigError(f"--noise {settings.noise} is for the split train alone; the splits are {', '.join(splits)}")
    results = []
    for split in splits:
        result = write_shards(
            _open_source(settings, split, several=len(splits) > 1),
            settings.out,
            split=split,
            noise=settings.noise if split == "train" else "none",
            seed=settings.seed,
            shard_size=settings.shard_size,
            truth=settings.truth,
        )
        results.append(result)
    return Prepared(tuple(results))


def _open_source(settings: PrepareSettings, split: str, *, several: bool) -> Source:
    root = Path(settings.root or "")
    if settings.source == "folder":
        return folder_source(root / split if several else root)
    if split not in ("train", "test"):
        raise ConfigError(f"{settings.source} has no split {split!r}; allowed: train, test")
    return cifar_source(settings.source, root, split, download=settings.download)


def _check_shard_size(settings: PrepareSettings) -> None:
    if settings.shard_size < 1:
        raise ConfigError(f"shard_size is {settings.shard_size}; at least 1 is needed")


def _check_root(settings: PrepareSettings) -> None:
    if settings.root is None:
        raise ConfigError(f"source {settings.source} needs --root, the folder with its images")


def listed_splits(settings: PrepareSettings) -> tuple[str, ...]:
    """The splits to write of a source in `LISTED`.

    Raises:
        ConfigError: a setting that does not fit the source.
    """
    _check_shard_size(settings)
    _check_root(settings)
    if settings.noise != "none" or settings.truth or settings.download:
        raise ConfigError(f"{settings.source} has its own noise; --noise, --truth, --download do not apply")
    has_imagenet = "imagenet" in LISTED[settings.source]
    if (settings.imagenet or settings.imagenet_labels) and not has_imagenet:
        raise ConfigError(f"--imagenet and --imagenet-labels go with webvision, not with source {settings.source}")
    allowed = LISTED[settings.source]
    unknown = [split for split in settings.splits if split not in allowed]
    if unknown:
        raise ConfigError(f"{settings.source} has no split {unknown[0]!r}; allowed: {', '.join(allowed)}")
    splits = settings.splits or tuple(split for split in allowed if split != "imagenet" or settings.imagenet)
    if "imagenet" in splits and not settings.imagenet:
        raise ConfigError("the split imagenet needs --imagenet, the folder with ImageNet's validation images")
    return splits


def open_listed(settings: PrepareSettings, split: str) -> ListedSource:
    """One split of a source in `LISTED`; paths are absolute, so that workers find them.

    Raises:
        ConfigError: lists or folders are missing or damaged.
    """
    root = Path(settings.root or "").expanduser().absolute()
    if settings.source == "animal10n":
        return animal10n_source(root, split)
    mini = settings.source == "webvision_mini"
    if split != "imagenet":
        return webvision_source(root, split, mini=mini)
    synsets = read_synsets(root, mini=mini)
    folder = Path(settings.imagenet or "").expanduser().absolute()
    return imagenet_source(folder, settings.imagenet_labels, [synset.wnid for synset in synsets], class_names(synsets))


def prepare_digits(out: str | Path, seed: int = 0) -> Prepared:
    """Write the embedded sample: `train-*.tar` (four, 40 % of the labels wrong, 150 foreign images) and `test-*.tar`.

    If it is there already, nothing is written.
    """
    results = [
        write_shards(
            digits_source(split, seed), str(out), split=split, noise=noise, seed=seed, shard_size=DIGITS_SHARD_SIZE
        )
        for split, noise in (("train", DIGITS_NOISE), ("test", "none"))
    ]
    return Prepared(tuple(results))


def write_shards(
    source: Source, out: str, *, split: str, noise: str, seed: int, shard_size: int, truth: bool = False
) -> PrepareResult:
    """Write one split: `KEY.png` (jpg, webp; the source's bytes) and `KEY.json` with `label`, `true_label` and more.

    The true label is written if the source knows it, if noise is added to its labels, or if `truth` says they are true.
    Images of no class get a label drawn from all classes. `human` noise replaces labels in the order of the source.

    Args:
        source: the images.
        out: folder or object-store URL.
        split: first part of the shards' names.
        noise: see `trainref_ray.data.noise.inject`.
        seed: of the noise.
        shard_size: samples of a shard.
        truth: the source's labels are true.

    Raises:
        ConfigError: other shards of this split, or other classes, are in the folder; or the noise does not fit.
    """
    storage = open_storage(out)
    settings = {
        "version": FORMAT_VERSION,
        "source": source.name,
        "labels": hashlib.sha256(source.labels.astype("<i8").tobytes()).hexdigest()[:16],
        "samples": len(source.labels),
        "noise": noise,
        "seed": seed,
        "shard_size": shard_size,
        "truth": truth,
    }
    marker = storage.read_json(MARKER) if storage.exists(MARKER) else {}
    done = written_before(storage, marker, split, settings)
    if done is not None:
        return done
    write_classes(storage, source.class_names)
    given = _given_labels(source, noise, seed)
    known_truth = source.known_truth or truth or noise != "none"
    # The settings stand there before the first shard, so that an interrupted writing may be started again.
    storage.write_json(MARKER, {**marker, split: {"settings": settings, "result": None}})
    with ShardWriter(storage.root, f"{split}-%05d.tar", shard_size) as writer:
        for sample, label in zip(source.samples(), given.tolist(), strict=True):
            facts: dict[str, Any] = {"label": label, **sample.extra}
            if known_truth:
                facts["true_label"] = sample.label
            writer.write(
                sample.key, {sample.extension: sample.image, "json": json.dumps(facts, sort_keys=True).encode()}
            )
    in_class = source.labels >= 0
    result = PrepareResult(
        split,
        tuple(writer.names),
        len(given),
        int((given != source.labels)[in_class].sum()) if known_truth else None,
        int((~in_class).sum()),
        source.ignored_files,
    )
    storage.write_json(MARKER, {**marker, split: {"settings": settings, "result": asdict(result)}})
    return result


def open_storage(out: str) -> Storage:
    """The storage of the option --out."""
    return Storage(out if "://" in out else os.path.abspath(os.path.expanduser(out)))


def written_before(
    storage: Storage, marker: dict[str, Any], split: str, settings: dict[str, Any]
) -> PrepareResult | None:
    """The result of an earlier writing with these settings; None if the split is to be written (again).

    Raises:
        ConfigError: shards of other settings, or of unknown origin, are there.
    """
    there = [name for name in storage.names("") if name.startswith(f"{split}-") and name.endswith(".tar")]
    entry = marker.get(split)
    if entry is None and there:
        raise ConfigError(
            f"{storage.location()} has {split} shards of unknown origin ({there[0]}); choose another --out"
        )
    if entry is None:
        return None
    changed = [name for name in settings if entry["settings"].get(name) != settings[name]]
    if changed:
        listed = ", ".join(f"{name} {entry['settings'].get(name)!r}, now {settings[name]!r}" for name in changed)
        raise ConfigError(
            f"{storage.location()} has {split} shards of other settings ({listed}); choose another --out, or remove it"
        )
    if entry["result"] is None or sorted(there) != sorted(entry["result"]["shards"]):
        return None
    facts = entry["result"] | {"written": False}
    for name in ("shards", "first_missing"):
        facts[name] = tuple(facts.get(name, ()))
    return PrepareResult(**facts)


def write_classes(storage: Storage, names: tuple[str, ...]) -> None:
    """Write `classes.json`, or check the one that is there.

    Raises:
        ConfigError: it names other classes.
    """
    if not storage.exists(CLASSES):
        storage.write_bytes(CLASSES, (json.dumps(list(names), indent=1) + "\n").encode())
    elif storage.read_json(CLASSES) != list(names):
        raise ConfigError(
            f"{storage.location(CLASSES)} names other classes than this source ({len(names)} classes, "
            f"{', '.join(names[:5])}, ...); choose another --out"
        )


def _given_labels(source: Source, noise: str, seed: int) -> np.ndarray:
    """Labels with noise, int64 [N]; images of no class get one drawn from all classes."""
    classes = len(source.class_names)
    in_class = source.labels >= 0
    given = np.random.default_rng([seed, classes]).integers(0, classes, len(source.labels))
    if parse_noise(noise).kind == "human" and not in_class.all():
        raise ConfigError(f"noise {noise!r} needs a source without foreign images")
    given[in_class] = inject(
        source.labels[in_class],
        classes,
        noise,
        seed,
        confusion=source.confusion,
        features=lambda: pixel_features(source.samples())[in_class],
    )
    return given


def pixel_features(samples: Iterator[SourceSample]) -> np.ndarray:
    """Pixels of 32 x 32 RGB images with mean 0 and deviation 1 over all of them, float32 [N, 3072].

    Raises:
        ConfigError: an image cannot be decoded.
    """
    rows = []
    for sample in samples:
        try:
            image = decode(sample.image, max_pixels=2**28).image
        except ImageError as error:
            raise ConfigError(f"noise that depends on images: {sample.key} {error}") from None
        rows.append(np.asarray(image.resize((FEATURE_SIDE, FEATURE_SIDE)), np.uint8).reshape(-1))
    features = np.stack(rows).astype(np.float32)
    features -= features.mean()
    return features / max(float(features.std()), 1e-6)
