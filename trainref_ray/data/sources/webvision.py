"""WebVision 1.0 as it is unpacked: lists in `info/`, images in `google/qNNNN/`, `flickr/qNNNN/` and `val_images_256/`.

The layout is that of the data set's README (Li et al. 2017, arXiv 1708.02862). Labels in the lists count from 0;
queries and synsets in `queries_synsets_map.txt` count from 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainref_ray.data.sources import ListedFile, ListedSource, split_path, stored_extension, unique_key
from trainref_ray.errors import ConfigError

PARTS = ("google", "flickr")
VAL_FOLDER = "val_images_256"
MINI_CLASSES = 50
"""Classes of "mini-WebVision", the subset of the first 50 classes and the Google part (Jiang et al. 2018)."""
TRAIN_PATH = re.compile(r"(google|flickr)/q(\d+)/[^/]+")


@dataclass(frozen=True)
class Synset:
    """A class: its WordNet number and all its names, such as `n01440764` and `tench, Tinca tinca`."""

    wnid: str
    names: str


def webvision_source(root: str | Path, split: str, *, mini: bool = False) -> ListedSource:
    """The split `train` or `val`.

    Keys of training images are PART/QUERY/NAME, of validation images NAME. `KEY.json` gets the WordNet number of the
    label and, of a training image, the text of its query. The labels of training images are checked against their
    queries.

    Args:
        root: folder with `info/` and the images.
        split: `train` or `val`.
        mini: the first 50 classes alone, of `train` the Google part.

    Raises:
        ConfigError: a list is missing or damaged, a folder of images is missing, or a label contradicts its query.
    """
    root = Path(root)
    synsets = read_synsets(root)
    classes = min(MINI_CLASSES, len(synsets)) if mini else len(synsets)
    if split == "val":
        files = _val_files(root, synsets, classes)
    else:
        files = _train_files(root, synsets, classes, PARTS[:1] if mini else PARTS)
    if not files:
        raise ConfigError(f"WebVision in {root}: the lists name no {split} image of the first {classes} classes")
    name = "webvision_mini" if mini else "webvision"
    return ListedSource(name, class_names(synsets[:classes]), root, files, known_truth=split == "val")


def read_synsets(root: Path, *, mini: bool = False) -> list[Synset]:
    """The classes in their order, from `info/synsets.txt`: a WordNet number and names a line; of `mini` the first 50.

    Raises:
        ConfigError: no such file, a line of another form, or fewer than two classes.
    """
    path = root / "info" / "synsets.txt"
    synsets = []
    for number, line in _lines(path):
        wnid, _, names = line.partition(" ")
        if not re.fullmatch(r"n\d{8}", wnid) or not names.strip():
            raise ConfigError(f"{path} line {number}: {line!r} is not of the form 'n01440764 tench, Tinca tinca'")
        synsets.append(Synset(wnid, names.strip()))
    if len(synsets) < 2:
        raise ConfigError(f"{path} has {len(synsets)} classes; at least 2 are needed")
    return synsets[:MINI_CLASSES] if mini else synsets


def class_names(synsets: list[Synset]) -> tuple[str, ...]:
    """The first name of each class; where several classes share it (crane, maillot), with the WordNet number."""
    first = [synset.names.split(",")[0].strip() for synset in synsets]
    return tuple(
        name if first.count(name) == 1 else f"{name} ({synset.wnid})"
        for name, synset in zip(first, synsets, strict=True)
    )


def _val_files(root: Path, synsets: list[Synset], classes: int) -> list[ListedFile]:
    _need_folder(root, VAL_FOLDER)
    files = []
    taken: set[str] = set()
    for _, name, label in _read_list(root / "info" / "val_filelist.txt", len(synsets)):
        if label < classes:
            key, extension = split_path(name)
            extra = {"synset": synsets[label].wnid}
            path = f"{VAL_FOLDER}/{name}"
            files.append(ListedFile(unique_key(key, taken), path, stored_extension(extension), label, extra))
    return files


def _train_files(root: Path, synsets: list[Synset], classes: int, parts: tuple[str, ...]) -> list[ListedFile]:
    query_labels = _read_query_labels(root, len(synsets))
    files: list[ListedFile] = []
    taken: set[str] = set()
    for part in parts:
        path = root / "info" / f"train_filelist_{part}.txt"
        facts = _query_facts(root, part, query_labels, synsets)
        first_wrong = ""
        count = wrong = 0
        for number, name, label in _read_list(path, len(synsets)):
            count += 1
            query = _query(name, part, f"{path} line {number}")
            if query_labels.get(query) != label:
                first_wrong = first_wrong or _contradiction(number, name, label, query, query_labels)
                wrong += 1
            elif label < classes:
                key, extension = split_path(name)
                files.append(ListedFile(unique_key(key, taken), name, stored_extension(extension), label, facts[query]))
        if wrong:
            raise ConfigError(
                f"{path} {first_wrong}; {wrong:,} of {count:,} lines contradict info/queries_synsets_map.txt. "
                "A training image has the label of its query: are these lists of two versions of WebVision?"
            )
        if count:
            _need_folder(root, part)
    return files


def _contradiction(number: int, name: str, label: int, query: int, query_labels: dict[int, int]) -> str:
    if query not in query_labels:
        return f"line {number}: {name} is of query {query}, which the map has not"
    return f"line {number}: {name} has label {label}, but query {query} stands for label {query_labels[query]}"


def _query(name: str, part: str, place: str) -> int:
    match = TRAIN_PATH.fullmatch(name)
    if match is None or match[1] != part:
        raise ConfigError(f"{place}: {name!r} is not of the form {part}/q0001/NAME.jpg")
    return int(match[2])


def _read_query_labels(root: Path, classes: int) -> dict[int, int]:
    """Label (from 0) of each query (from 1), from `info/queries_synsets_map.txt`, which counts both from 1."""
    path = root / "info" / "queries_synsets_map.txt"
    labels = {}
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != 2 or not all(field.isdecimal() for field in fields):
            raise ConfigError(f"{path} line {number}: {line!r} is not of the form 'QUERY SYNSET', two numbers")
        query, synset = map(int, fields)
        if not 1 <= synset <= classes:
            raise ConfigError(f"{path} line {number}: synset {synset} is not one of 1 to {classes} (info/synsets.txt)")
        if query in labels:
            raise ConfigError(f"{path} line {number}: query {query} comes twice")
        labels[query] = synset - 1
    return labels


def _query_facts(
    root: Path, part: str, query_labels: dict[int, int], synsets: list[Synset]
) -> dict[int, dict[str, str]]:
    """What KEY.json says of the images of each query; its text is left out where `info/queries_PART.txt` is missing."""
    path = root / "info" / f"queries_{part}.txt"
    facts = {query: {"synset": synsets[label].wnid} for query, label in query_labels.items()}
    for number, line in _lines(path) if path.exists() else ():
        query, _, text = line.partition(" ")
        if not query.isdecimal() or not text.strip():
            raise ConfigError(f"{path} line {number}: {line!r} is not of the form 'QUERY TEXT'")
        if int(query) in facts:
            facts[int(query)]["query"] = text.strip()
    return facts


def _read_list(path: Path, classes: int) -> Iterator[tuple[int, str, int]]:
    """Line number, path and label of each line `PATH LABEL`; a path may have blanks."""
    for number, line in _lines(path):
        name, _, label = line.rpartition(" ")
        name = name.strip()
        if not name or not label.isdecimal():
            raise ConfigError(f"{path} line {number}: {line!r} is not of the form 'PATH LABEL'")
        if int(label) >= classes:
            raise ConfigError(f"{path} line {number}: label {label} is not in info/synsets.txt, 0 to {classes - 1}")
        if name.startswith("/") or ".." in name.split("/"):
            raise ConfigError(f"{path} line {number}: {name!r} leads out of the data set")
        yield number, name, int(label)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of every line that is not blank."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line.strip()
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give the folder where WebVision 1.0 is unpacked") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text: {error}") from None


def _need_folder(root: Path, name: str) -> None:
    if not (root / name).is_dir():
        raise ConfigError(f"{root} has no folder {name}/, where the lists have their images; unpack it there")
