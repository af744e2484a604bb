"""A miniature WebVision 1.0 in exactly its layout, made of real photographs.

Classes are Tiny ImageNet's, 20 photographs each; foreign images are photographs of clothes. Which queries stand for a
class comes from WebVision's own `queries_synsets_map.txt`. The lists name files that are missing, some files have
unusual names, and three are no whole images.
"""

from __future__ import annotations

import json
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainref_ray.data.sources import split_path

PHOTOGRAPHS_A_CLASS = 20
UNUSUAL_NAMES = ("two words.jpg", "a.b.c.jpg", "a_b_c.jpg", "tenca_ñ.JPG", "no_extension", ".dot.jpeg")
"""Given to the first Google images of class 0. The second and third would have one key."""
FOREIGN = -1


@dataclass(frozen=True)
class WebVisionTree:
    """What was built.

    Attributes:
        root: the folder to prepare from.
        imagenet: folder with `ILSVRC2012_val_*.JPEG`.
        devkit: folder with `ILSVRC2012_validation_ground_truth.txt` and `meta.mat`.
        imagenet_wnids: WordNet number of each ImageNet image by its name.
        names: first name of each class.
        wnids: WordNet number of each class.
        labels: label in the lists of every file, by path below the root; missing ones too.
        truth: class that every training file shows, by path; -1 = none of them.
        missing: paths in the lists that are not there.
        corrupt: paths of files that cannot be decoded.
    """

    root: Path
    imagenet: Path
    devkit: Path
    imagenet_wnids: dict[str, str]
    names: list[str]
    wnids: list[str]
    labels: dict[str, int]
    truth: dict[str, int]
    missing: list[str]
    corrupt: list[str]

    def write_references(self, path: Path, per_class: int, classes: int | None = None) -> None:
        """Write key and label of so many Google images of each class that show what their label says."""
        rows = ["key,label"]
        for label in range(classes or len(self.names)):
            good = [
                file
                for file, true_label in self.truth.items()
                if file.startswith("google/") and true_label == self.labels[file] == label
                if file not in self.corrupt and file.rpartition("/")[2] not in UNUSUAL_NAMES
            ]
            if len(good) < per_class:
                raise ValueError(f"class {label} has {len(good)} images that are what their label says")
            rows += [f"{split_path(file)[0]},{label}" for file in good[-per_class:]]
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def build_webvision_tree(
    folder: Path,
    shared_data: Path,
    *,
    classes: int = 50,
    google: int = 10,
    flickr: int = 4,
    val: int = 4,
    imagenet: int = 2,
    foreign: int = 1,
    wrong: float = 0.25,
    seed: int = 0,
) -> WebVisionTree:
    """Build the tree below `folder`.

    Args:
        folder: an empty or new folder.
        shared_data: folder with the tars of photographs and WebVision's list.
        classes: 2 to 100.
        google, flickr, val, imagenet: photographs of each class in each part: 3 of Google at least, 20 in all at most.
        foreign: photographs of clothes in the Google part of each class.
        wrong: share of the training images that change places with those of other classes.
        seed: of every choice.
    """
    if google + flickr + val + imagenet > PHOTOGRAPHS_A_CLASS:
        raise ValueError(f"a class has {PHOTOGRAPHS_A_CLASS} photographs")
    rng = np.random.default_rng(seed)
    photographs, names, wnids = _classes(shared_data, classes)
    queries = _queries(shared_data, classes)
    root = folder / "webvision"
    (root / "info").mkdir(parents=True)
    tree = WebVisionTree(root, folder / "imagenet", folder / "devkit", {}, names, wnids, {}, {}, [], [])
    _write_class_lists(root, names, wnids, queries)
    clothes = iter([image for image, _ in _samples_of(shared_data / "clothing")])
    _write_train(tree, photographs, clothes, queries, {"google": google, "flickr": flickr}, foreign, wrong, rng)
    _write_val(tree, photographs, google + flickr, val, rng)
    _write_imagenet(tree, photographs, google + flickr + val, imagenet, rng)
    return tree


def _write_train(
    tree: WebVisionTree,
    photographs: dict[int, list[bytes]],
    clothes: Iterator[bytes],
    queries: dict[int, list[int]],
    counts: dict[str, int],
    foreign: int,
    wrong: float,
    rng: np.random.Generator,
) -> None:
    a_class = sum(counts.values())
    own = [photographs[label][number] for label in range(len(tree.names)) for number in range(a_class)]
    moved = rng.permutation(len(own))[: int(wrong * len(own))]
    source = np.arange(len(own))
    source[moved] = np.roll(moved, 1)
    lines: dict[str, list[tuple[str, int]]] = {"google": [], "flickr": []}
    for label in range(len(tree.names)):
        shown = [(own[row], int(row) // a_class) for row in source[label * a_class : (label + 1) * a_class]]
        images = [("google", image, true_label) for image, true_label in shown[: counts["google"]]]
        images += [("google", next(clothes), FOREIGN) for _ in range(foreign)]
        images += [("flickr", image, true_label) for image, true_label in shown[counts["google"] :]]
        for number, (part, image, true_label) in enumerate(images):
            query = queries[label][number % len(queries[label])]
            path = f"{part}/q{query:04d}/{_name(part, label, number, rng)}"
            _write(tree.root / path, image)
            lines[part].append((path, label))
            tree.truth[path] = true_label
    for part, listed in lines.items():
        path = f"{part}/q{queries[1][0]:04d}/gone_since.jpg"
        listed.insert(1, (path, 1))
        tree.missing.append(path)
        _write_list(tree.root / "info" / f"train_filelist_{part}.txt", listed)
        tree.labels.update(listed)
    _damage(tree, [path for path, label in lines["google"] if label == 1 and path not in tree.missing][:3])


def _name(part: str, label: int, number: int, rng: np.random.Generator) -> str:
    """Google's files are named by a hash, Flickr's by a number."""
    if part == "google" and label == 0 and number < len(UNUSUAL_NAMES):
        return UNUSUAL_NAMES[number]
    return f"{rng.bytes(16).hex()}.jpg" if part == "google" else f"{rng.integers(10**9, 10**10)}.jpg"


def _damage(tree: WebVisionTree, paths: list[str]) -> None:
    """A photograph cut in half, a web page instead of an image, and an empty file."""
    contents = ((tree.root / paths[0]).read_bytes()[:700], b"<html>404 Not Found</html>", b"")
    for path, content in zip(paths, contents, strict=True):
        _write(tree.root / path, content)
        tree.corrupt.append(path)


def _write_val(
    tree: WebVisionTree, photographs: dict[int, list[bytes]], first: int, count: int, rng: np.random.Generator
) -> None:
    images = [
        (label, photographs[label][first + number]) for label in range(len(tree.names)) for number in range(count)
    ]
    listed = []
    for number, row in enumerate(rng.permutation(len(images)).tolist(), start=1):
        label, image = images[row]
        listed.append((f"val{number:06d}.jpg", label))
        _write(tree.root / "val_images_256" / listed[-1][0], image)
    (tree.root / "val_images_256" / listed[0][0]).unlink()
    _write_list(tree.root / "info" / "val_filelist.txt", listed)
    tree.missing.append(f"val_images_256/{listed[0][0]}")
    tree.labels.update({f"val_images_256/{name}": label for name, label in listed})


def _write_imagenet(
    tree: WebVisionTree, photographs: dict[int, list[bytes]], first: int, count: int, rng: np.random.Generator
) -> None:
    """Images in one folder; the devkit numbers the classes in an order of its own, here the reverse of the labels'."""
    from scipy.io import savemat

    classes = len(tree.names)
    images = [(label, photographs[label][first + number]) for label in range(classes) for number in range(count)]
    numbers = []
    for number, row in enumerate(rng.permutation(len(images)).tolist(), start=1):
        label, image = images[row]
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        _write(tree.imagenet / name, image)
        tree.imagenet_wnids[name] = tree.wnids[label]
        numbers.append(classes - label)
    tree.devkit.mkdir()
    (tree.devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in numbers))
    fields = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "f8")]
    rows = [(classes - label, tree.wnids[label], tree.names[label], "a thing", 0) for label in range(classes)]
    rows.append((classes + 1, "n00001740", "entity", "everything", classes))  # an inner node of the hierarchy
    savemat(tree.devkit / "meta.mat", {"synsets": np.array(sorted(rows), dtype=fields).reshape(-1, 1)})


def _classes(shared_data: Path, classes: int) -> tuple[dict[int, list[bytes]], list[str], list[str]]:
    """Photographs, name and WordNet number of the first classes, numbered anew from 0."""
    grouped = defaultdict(list)
    facts = {}
    for image, fact in _samples_of(shared_data / "tinyimagenet"):
        grouped[fact["label"]].append(image)
        facts[fact["label"]] = (fact["name"], fact["source"].split("/")[1])
    chosen = sorted(grouped)[:classes]
    photographs = {new: grouped[old] for new, old in enumerate(chosen)}
    return photographs, [facts[old][0] for old in chosen], [facts[old][1] for old in chosen]


def _samples_of(folder: Path) -> list[tuple[bytes, dict]]:
    """Image file and facts of each sample of the tars in a folder."""
    samples = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            contents = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        keys = [name.removesuffix(".jpg") for name in contents if name.endswith(".jpg")]
        samples += [(contents[f"{key}.jpg"], json.loads(contents[f"{key}.json"])) for key in keys]
    return samples


def _queries(shared_data: Path, classes: int) -> dict[int, list[int]]:
    """The queries of each class, as WebVision has them."""
    queries = defaultdict(list)
    for line in (shared_data / "webvision-lists" / "queries_synsets_map.txt").read_text().splitlines():
        query, synset = map(int, line.split())
        if synset <= classes:
            queries[synset - 1].append(query)
    return queries


def _write_class_lists(root: Path, names: list[str], wnids: list[str], queries: dict[int, list[int]]) -> None:
    synsets = [f"{wnid} {name}, another name" for wnid, name in zip(wnids, names, strict=True)]
    (root / "info" / "synsets.txt").write_text("\n".join(synsets) + "\n")
    pairs = sorted((query, label) for label, numbers in queries.items() for query in numbers)
    (root / "info" / "queries_synsets_map.txt").write_text("".join(f"{q} {label + 1}\n" for q, label in pairs))
    for part in ("google", "flickr"):
        texts = [f"{query} {names[label]} {part}" for query, label in pairs]
        (root / "info" / f"queries_{part}.txt").write_text("\n".join(texts) + "\n")


def _write_list(path: Path, listed: list[tuple[str, int]]) -> None:
    path.write_text("".join(f"{name} {label}\n" for name, label in listed), encoding="utf-8")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
