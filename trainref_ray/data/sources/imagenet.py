"""The validation images of ImageNet (ILSVRC 2012) as a test set for other data sets with the same classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from trainref_ray.data.images import EXTENSIONS
from trainref_ray.data.sources import ListedFile, ListedSource, split_path, stored_extension, unique_key
from trainref_ray.errors import ConfigError

WNID = re.compile(r"n\d{8}")
DEVKIT_TABLE = "meta.mat"


def imagenet_source(
    root: str | Path, labels_file: str | Path | None, wnids: Sequence[str], class_names: tuple[str, ...]
) -> ListedSource:
    """Validation images of the classes `wnids`, labelled by their place in it; other classes are left out.

    Args:
        root: a folder with a sub-folder for each WordNet number, or with all images `ILSVRC2012_val_*.JPEG`.
        labels_file: for a folder with all images, one of: lines NAME WNID, separated by blank, tab or comma, further
            columns allowed (`LOC_val_solution.csv`); lines WNID in the order of the images; the devkit's
            `ILSVRC2012_validation_ground_truth.txt`, with the devkit's `meta.mat` beside it.
        wnids: WordNet numbers of the classes, in the order of the labels.
        class_names: their names.

    Raises:
        ConfigError: no such folder or file, a line of another form, or no image of these classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise ConfigError(f"ImageNet folder {root} does not exist")
    if labels_file is None:
        pairs = _from_folders(root)
    else:
        pairs = [(_with_extension(name), wnid) for name, wnid in read_wnids(Path(labels_file))]
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    taken: set[str] = set()
    files = []
    for path, wnid in pairs:
        if wnid in label_of:
            key, extension = split_path(path.rpartition("/")[2])
            label = label_of[wnid]
            files.append(ListedFile(unique_key(key, taken), path, stored_extension(extension), label, {"synset": wnid}))
    if not files:
        raise ConfigError(f"ImageNet in {root}: none of {len(pairs):,} images is of one of the {len(wnids)} classes")
    return ListedSource("imagenet", class_names, root, files, known_truth=True)


def _from_folders(root: Path) -> list[tuple[str, str]]:
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and WNID.fullmatch(entry.name))
    if not folders:
        raise ConfigError(
            f"ImageNet in {root}: no sub-folder is named by a WordNet number (n01440764); for a folder with all images "
            "give --imagenet-labels FILE"
        )
    return [
        (f"{folder}/{file.name}", folder)
        for folder in folders
        for file in sorted((root / folder).iterdir())
        if split_path(file.name)[1] in EXTENSIONS and not file.name.startswith(".")
    ]


def _with_extension(name: str) -> str:
    return name if "." in name else f"{name}.JPEG"


def read_wnids(path: Path) -> list[tuple[str, str]]:
    """File name and WordNet number of each validation image, from a file in one of the forms of `imagenet_source`.

    Raises:
        ConfigError: no such file, or a line of another form.
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise ConfigError(f"ImageNet labels: {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"ImageNet labels: {path} is no UTF-8 text: {error}") from None
    rows = [re.split(r"[\s,]+", line.strip()) for line in lines]
    if rows and rows[0][0] == "ImageId":  # the header of Kaggle's file
        rows = rows[1:]
    if rows and all(len(row) == 1 and row[0].isdecimal() for row in rows):
        table = _read_devkit_table(path)
        rows = [[table.get(int(row[0]), row[0])] for row in rows]
    pairs = []
    for number, row in enumerate(rows, start=1):
        name, wnid = (f"ILSVRC2012_val_{number:08d}", row[0]) if len(row) == 1 else (row[0], row[1])
        if not WNID.fullmatch(wnid) or "/" in name:
            raise ConfigError(
                f"ImageNet labels: entry {number} of {path} is {' '.join(row)!r}; allowed are NAME WNID, WNID alone "
                "(n01440764), or the devkit's numbers. Other numbers do not say which order of classes they mean"
            )
        pairs.append((name, wnid))
    return pairs


def _read_devkit_table(labels: Path) -> dict[int, str]:
    """WordNet number of each ILSVRC2012_ID: the devkit numbers its classes in an order of its own."""
    path = labels.with_name(DEVKIT_TABLE)
    if not path.is_file():
        raise ConfigError(
            f"ImageNet labels: {labels} has the devkit's numbers, whose meaning stands in the devkit's {DEVKIT_TABLE}; "
            "put that file beside it"
        )
    from scipy.io import loadmat  # here: nothing else needs it

    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    except Exception as error:  # on damaged files scipy raises any of several kinds
        raise ConfigError(f"ImageNet labels: {path} is not the devkit's table: {error}") from None
