"""Images of a finished run that a person should check next: which ones, the file to fill in, and the page."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from trainref_ray.config import Config, make_config
from trainref_ray.data.reference import COLUMNS, class_of, read_reference_csv
from trainref_ray.errors import ConfigError, ReferenceSetError, ResumeError
from trainref_ray.method.decide import OOD_CUT, entropy_bits
from trainref_ray.method.influence import unit_rows
from trainref_ray.method.steps import curated_distributions
from trainref_ray.method.suggest import suggest
from trainref_ray.report.figures import thumbnail
from trainref_ray.report.image_files import read_image_files
from trainref_ray.report.page import TEMPLATES, page_environment, policy_hash
from trainref_ray.results import CurationRun, given_weight_of, label_mass_of
from trainref_ray.schemas import QUARANTINED, SHARD_BITS, to_matrix

CANDIDATES, POINTS = 10_000, 4_000
"""Of larger sets so many images are drawn among which is chosen, and of these so many for which: their similarities
are 160 MB."""
SHOWN_CLASSES, LEAST_SHOWN = 3, 0.01
"""Classes beside an image, and the least probability of one."""
FILE, PAGE = "suggestions.csv", "report/suggestions.html"
EXTRA_COLUMNS = ("given", "curated")
"""Columns for the person who fills the file in; what reads references skips them."""


@dataclass(frozen=True)
class Suggestion:
    """An image to check.

    Attributes:
        uid: of the image.
        key: its name, as a reference file names it.
        given: name of its given label.
        top: largest classes of its curated distribution with their probabilities.
        decision: of the run.
        image: the image file's bytes.
        nearest: how similar the images in doubt are to the nearest reference once this one and those before it are
            references: weighted mean of cosines, 0 to 1.
    """

    uid: int
    key: str
    given: str
    top: list[tuple[str, float]]
    decision: str
    image: bytes
    nearest: float


@dataclass(frozen=True)
class Suggestions:
    """Images to check, the most useful first, and what was there before.

    Attributes:
        images: the suggestions.
        class_names: C names.
        references: key and name of the class of the references that the run had.
        doubtful: images that could be suggested: in distribution, no references, of no sure class.
        nearest: how similar these are to the nearest reference now.
    """

    images: list[Suggestion]
    class_names: list[str]
    references: list[tuple[str, str]]
    doubtful: int
    nearest: float


def suggest_references(run: CurationRun, *, count: int, seed: int = 0) -> Suggestions:
    """The images of a run whose checking would help most, by its last round.

    An image weighs what its curated distribution leaves open (entropy); those out of distribution and the references
    weigh nothing. See `method.suggest.suggest`.

    Args:
        run: a finished run.
        count: images wanted.
        seed: of the draw of the candidates.

    Raises:
        ConfigError: count is not positive.
        ResumeError: the run's tables are incomplete.
        ShardError: a shard changed since the run.
    """
    if count < 1:
        raise ConfigError(f"--count is {count}; allowed: 1 and more")
    if not run.storage.exists("stages.json"):
        raise ResumeError(f"{run.path} is not finished: start the curation again with this --out first")
    settings = make_config(run.settings)
    doubtful, uids, weights = _draw(run, settings, seed)
    if len(uids):
        references = _embeddings(run, run.reference_uids)
        rows, nearest = suggest(_embeddings(run, uids), weights, references, points=POINTS, count=count)
    else:
        rows, nearest = np.zeros(0, np.int64), np.ones(1)
    described = _described(run, settings, uids[rows])
    images = read_image_files(run, uids[rows])
    return Suggestions(
        images=[
            Suggestion(uid=uid, image=images[uid], nearest=float(reached), **described[uid])
            for uid, reached in zip(uids[rows].tolist(), nearest[1:], strict=True)
        ],
        class_names=run.class_names,
        references=_given_references(run),
        doubtful=doubtful,
        nearest=float(nearest[0]),
    )


def _draw(run: CurationRun, settings: Config, seed: int) -> tuple[int, np.ndarray, np.ndarray]:
    """How many images are in doubt; of at most `CANDIDATES` of them, at random and in random order, uids int64 and
    entropies in bits, float64. One shard is in memory at a time."""
    total = 0
    order, uids, weights = np.zeros(0), np.zeros(0, np.int64), np.zeros(0)
    for shard in run.stages["shards"]:
        table, distribution = _curated(run, settings, shard)
        found = table["uid"].to_numpy()
        entropy = entropy_bits(distribution)
        is_candidate = (entropy > 0) & (table["ood_score"].to_numpy() <= OOD_CUT)
        useful = np.flatnonzero(is_candidate & ~np.isin(found, run.reference_uids))
        total += len(useful)
        # by uid, so that a draw does not depend on what else is in doubt
        drawn = np.random.default_rng([seed, shard]).random(len(found))[useful]
        order, uids = np.concatenate([order, drawn]), np.concatenate([uids, found[useful]])
        weights = np.concatenate([weights, entropy[useful]])
        first = np.argsort(order, kind="stable")[:CANDIDATES]
        order, uids, weights = order[first], uids[first], weights[first]
    return total, uids, weights


def _curated(run: CurationRun, settings: Config, shard: int) -> tuple[pa.Table, np.ndarray]:
    """Usable decisions of a shard and their distributions float32 [n, C], also of those whose written label is one
    class or none."""
    table = run.stage("decisions").read_shard(shard)
    table = table.filter(pc.not_equal(table["decision"].cast(pa.string()), QUARANTINED))
    transition = run.stage("transition")
    distribution = curated_distributions(
        to_matrix(run.stage("distributions").read_shard(shard)["distribution"]),
        table["label"].to_numpy().astype(np.int64),
        label_mass_of(transition),
        temperature=settings.vote.temperature,
        given_weight=given_weight_of(transition, settings.vote),
    )
    return table, distribution


def _embeddings(run: CurationRun, uids: np.ndarray) -> np.ndarray:
    """float32 [n, D], unit norm, in the order of the uids; one shard is in memory at a time."""
    found: dict[int, np.ndarray] = {}
    for shard in _shards(uids):
        table = run.stage("embeddings").read_shard(shard, ["uid", "embedding"])
        rows = pa.array(np.flatnonzero(np.isin(table["uid"].to_numpy(), uids)))
        table = table.take(rows)
        found.update(zip(table["uid"].to_pylist(), to_matrix(table["embedding"]), strict=True))
    return unit_rows(np.stack([found[uid] for uid in uids.tolist()]))


def _shards(uids: np.ndarray) -> list[int]:
    return np.unique(uids >> SHARD_BITS).tolist()


def _described(run: CurationRun, settings: Config, uids: np.ndarray) -> dict[int, dict[str, Any]]:
    """Key, given label, largest classes and decision of each uid."""
    found: dict[int, dict[str, Any]] = {}
    for shard in _shards(uids):
        table, distribution = _curated(run, settings, shard)
        rows = np.flatnonzero(np.isin(table["uid"].to_numpy(), uids))
        for row, values in zip(table.take(pa.array(rows)).to_pylist(), distribution[rows], strict=True):
            order = [
                index for index in np.argsort(-values, kind="stable")[:SHOWN_CLASSES] if values[index] >= LEAST_SHOWN
            ]
            found[row["uid"]] = {
                "key": row["key"],
                "given": run.class_names[row["label"]],
                "decision": row["decision"],
                "top": [(run.class_names[index], float(values[index])) for index in order],
            }
    return found


def _given_references(run: CurationRun) -> list[tuple[str, str]]:
    """Key and name of the trusted class of the references that the run was given."""
    rows = read_reference_csv(run.storage.location("references.csv"), run.class_names)
    return [(key, run.class_names[label]) for key, label in rows]


def write_suggestions(run: CurationRun, found: Suggestions) -> None:
    """Write `suggestions.csv`, to be filled in, and `report/suggestions.html` into the run folder.

    Raises:
        ReferenceSetError: the file is there already, and somebody has filled in labels that would be lost, or has saved
            it as something in which they cannot be looked for.
    """
    if run.storage.exists(FILE):
        place = run.storage.location(FILE)
        answers = _filled_in(run.storage.read_bytes(FILE))
        if answers is None:
            raise ReferenceSetError(
                f"{place} is no comma-separated UTF-8 text with the columns {' and '.join(COLUMNS)} any more, so that "
                "labels in it would be lost: save it so, or move it away"
            )
        names = found.class_names
        known = {(key, names.index(name)) for key, name in found.references}
        filled = [key for key, label in answers if (key, class_of(label, names)) not in known]
        if filled:
            raise ReferenceSetError(
                f"{place} holds {len(filled)} labels that this run does not know, the first of {filled[0]!r}: curate "
                "with --reference and this file, or move it away"
            )
    run.storage.write_bytes(FILE, suggestions_csv(found).encode())
    run.storage.write_bytes(PAGE, render_suggestions(found).encode())


def _filled_in(content: bytes) -> list[tuple[str, str]] | None:
    """Keys and labels where there is a label in a file of `suggestions_csv`; None if a spreadsheet has saved it with
    other separators or in another encoding."""
    rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig", "replace")))
    if not set(COLUMNS) <= set(rows.fieldnames or ()):
        return None
    return [(row["key"] or "", label) for row in rows if (label := (row["label"] or "").strip())]


def suggestions_csv(found: Suggestions) -> str:
    """A reference file: the references that there are, then the suggestions without a label."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, *EXTRA_COLUMNS))
    for key, name in found.references:
        writer.writerow((key, name, "", ""))
    for image in found.images:
        curated = ", ".join(f"{name} {100 * share:.0f} %" for name, share in image.top)
        writer.writerow((image.key, "", image.given, curated))
    return text.getvalue()


def render_suggestions(found: Suggestions) -> str:
    """The page on which the suggestions are labelled, as HTML text, escaped and locked like the report.

    Its script makes a reference file of the answers, on the reader's own machine.
    """
    style = Markup("\n").join(
        Markup((TEMPLATES / name).read_text(encoding="utf-8")) for name in ("page.css", "suggestions.css")
    )
    script = Markup((TEMPLATES / "suggestions.js").read_text(encoding="utf-8"))
    return (
        page_environment()
        .get_template("suggestions.html.j2")
        .render(
            content=found,
            file=FILE,
            style=style,
            script=script,
            style_hash=policy_hash(style),
            script_hash=policy_hash(script),
            thumbnail=thumbnail,
        )
    )
