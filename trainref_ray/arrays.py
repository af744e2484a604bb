"""Curation of arrays in memory: no Ray, no files."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainref_ray.errors import ConfigError, first_line
from trainref_ray.method import augment, decide, influence, ood
from trainref_ray.method.steps import (
    WEIGHED_SAMPLES,
    Members,
    Search,
    combine_sources,
    curated_distributions,
    find_supporters,
    fit_ood,
    fitted_given_weight,
    label_mass,
    raw_ood,
    score_samples,
)
from trainref_ray.models.probe import Probe, fit_probe

if TYPE_CHECKING:  # where torch is all there is, settings and search are handed in
    from trainref_ray.config import Config

SUM_TOLERANCE = 1e-2
"""How far from 1 a row of probabilities may sum: float16 ones of 1,000 classes are off by some thousandths."""

SEEDS = 2**63
"""So many seeds there are, from 0: torch and the draws by uid take all of them."""


@dataclass(frozen=True)
class Curation:
    """Result of `curate_arrays` for N samples; given references are rows apart and have no result.

    Attributes:
        keys: str [N], the samples' names.
        decision: str [N]: keep, relabel, soften or ood.
        soft_label: float32 [N, C], what to train on; all 0 where the decision is ood.
        best_class: int64 [N], leading class of the curated distribution.
        label_quality: float32 [N], 0 to 1, higher = the given label is more likely right.
        ood_score: float32 [N], 0 to 1, higher = stranger, flagged above 0.5.
        ood_raw: float32 [N], the distance behind it.
        reasons: N sentences.
        supporters: int64 [N, k]: 0 to N − 1 is a sample, N + r is given reference r, −1 is none.
        supporter_similarity: float32 [N, k], cosine.
        supporter_label: int64 [N, k], −1 is none.
        in_reference_set: bool [N], joined the reference set by augmentation.
        given_references: R.
        ood_cut: raw score above which a sample is flagged; infinity where too few samples pass to set one.
        classes_left_short: classes that no sample joined.
        given_weight: how much the given label weighed.
    """

    keys: np.ndarray
    decision: np.ndarray
    soft_label: np.ndarray
    best_class: np.ndarray
    label_quality: np.ndarray
    ood_score: np.ndarray
    ood_raw: np.ndarray
    reasons: list[str]
    supporters: np.ndarray
    supporter_similarity: np.ndarray
    supporter_label: np.ndarray
    in_reference_set: np.ndarray
    given_references: int
    ood_cut: float
    classes_left_short: list[int]
    given_weight: float


def curate_arrays(
    features: np.ndarray,
    labels: np.ndarray,
    reference_features: np.ndarray,
    reference_labels: np.ndarray,
    *,
    classes: int | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    settings: Config | None = None,
    duplicates_of: np.ndarray | None = None,
    model_probabilities: np.ndarray | None = None,
    build_search: Callable[[np.ndarray, np.ndarray], Search] | None = None,
    ood_features: tuple[np.ndarray, np.ndarray] | None = None,
    reference_given_labels: np.ndarray | None = None,
) -> Curation:
    """Curate samples by their features and a few trusted references.

    Features are normalised and rounded to float16 first, as a run on disk stores them. The references are rows apart
    from the samples: hand them in once, here.

    Args:
        features: float [N, D], such as the embeddings of any backbone; rows of any length but 0.
        labels: int [N], given labels, 0 to C − 1.
        reference_features: float [R, D].
        reference_labels: int [R], trusted labels.
        classes: C; by default as many as there are class names, else one more than the largest label.
        class_names: C names, for the reasons.
        seed: of the probe and of the draw of the calibration samples, an integer from 0 to 2**63 - 1.
        keys: N different names; by default the row numbers.
        settings: the groups probe, augment, vote, ood and decide, and allow_missing_classes are read.
        duplicates_of: [N] values that are equal where samples are copies of one image, such as the images' sha256;
            copies do not support each other. None and NaN are unknown, copies of nothing.
        model_probabilities: float [N, C], each row sums to 1, what the model that the features are of says of each
            sample, best after temperature scaling; by default the probe's, as with `vote.model_source` probe.
        build_search: makes the search of the reference set of its vectors float32 [M, D] and ids int64 [M]; by default
            FAISS's exact one. Where FAISS is not installed, hand in `retrieval.exact.build_exact_search`.
        ood_features: float [N, E] and [R, E], other features of the samples and the references to tell strange images
            by, such as those of a model that was not fine-tuned yet; by default the features. Not read by `ood.score`
            knn.
        reference_given_labels: int [R], the labels that the references had among the samples, right or wrong. If the
            references are a random choice, these tell how much a given label weighs (unless `vote.fit_given_weight` is
            never).

    Raises:
        ConfigError: shapes or values do not fit; names the argument, the place and what is allowed.
    """
    settings = _default_settings() if settings is None else settings
    seed = _seed(seed)
    inputs = _check(
        features,
        labels,
        reference_features,
        reference_labels,
        classes,
        class_names,
        keys,
        duplicates_of,
        settings,
        ood_features,
    )
    model = _probabilities(model_probabilities, len(inputs.labels), inputs.classes)
    right = _references_right(reference_given_labels, inputs.trusted, settings)
    count, classes = len(inputs.labels), inputs.classes
    uids = np.arange(count, dtype=np.int64)
    probe = _fit_probe(inputs, settings, seed)
    probabilities = probe.probabilities(inputs.samples)
    evidence = influence.class_evidence(
        inputs.samples,
        probabilities,
        inputs.references,
        probe.probabilities(inputs.references),
        inputs.trusted,
        classes=classes,
        bias=probe.bias is not None,
    )
    passes, joined = _augmented(evidence, inputs.labels, classes, settings)
    members = _members(inputs, joined)
    supporters = find_supporters(
        (build_search or _build_faiss_search)(members.embeddings, members.uids),
        uids,
        inputs.samples,
        None if inputs.digests is None else inputs.digests[:count],
        members,
        k=settings.vote.k,
        near_duplicate=settings.vote.near_duplicate,
        diversity=settings.vote.diversity,
    )
    is_member = np.isin(uids, joined)
    drawn, fitted_on = ood.draw_passing(
        uids, passes, calibration=settings.ood.calibration_samples, fit=settings.ood.fit_samples, seed=seed
    )
    ood_model = fit_ood(
        np.concatenate([inputs.ood_references, inputs.ood_samples[fitted_on]]),
        np.concatenate([inputs.trusted, inputs.labels[fitted_on]]),
        inputs.ood_samples[drawn],
        supporters.rows(drawn),
        score=settings.ood.score,
        classes=classes,
        shrinkage=settings.ood.shrinkage,
        quantile=settings.ood.quantile,
    )
    options = settings.vote
    combined = combine_sources(
        evidence,
        probabilities.mean(axis=0) if model is None or options.model_source == "probe" else model,
        supporters,
        np.bincount(members.labels, minlength=classes),
        weights=(options.vote_weight, options.influence_weight, options.model_weight),
        balance=options.balance,
    )
    mass, given_weight = label_mass(combined, inputs.labels, temperature=options.temperature), options.given_weight
    if right is not None:
        some = np.flatnonzero(np.random.default_rng(seed).random(count) < WEIGHED_SAMPLES / count)
        strange = raw_ood(inputs.ood_samples[some], supporters.rows(some), ood_model.gaussian) > ood_model.cut
        some = some[~strange]
        given_weight = fitted_given_weight(
            combined[some],
            inputs.labels[some],
            mass,
            right,
            inputs.trusted,
            temperature=options.temperature,
            set_weight=options.given_weight,
        )
    distribution = curated_distributions(
        combined, inputs.labels, mass, temperature=options.temperature, given_weight=given_weight
    )
    scores = score_samples(
        distribution,
        inputs.labels,
        np.zeros(count, dtype=bool),
        inputs.labels,
        raw_ood(inputs.ood_samples, supporters, ood_model.gaussian),
        cut=ood_model.cut,
        keep_at=settings.decide.keep_at,
        relabel_entropy=settings.decide.relabel_entropy,
        keep_as=settings.decide.keep_as,
        relabel_as=settings.decide.relabel_as,
        class_names=class_names,
    )
    return Curation(
        keys=inputs.keys,
        decision=np.array(decide.DECISIONS)[scores.codes],
        soft_label=scores.soft_label,
        best_class=scores.best_class,
        label_quality=scores.label_quality,
        ood_score=scores.ood_score,
        ood_raw=scores.ood_raw,
        reasons=scores.reasons,
        supporters=supporters.uids,
        supporter_similarity=supporters.similarity,
        supporter_label=supporters.labels,
        in_reference_set=is_member,
        given_references=len(inputs.references),
        ood_cut=ood_model.cut,
        classes_left_short=augment.classes_left_short(inputs.labels[joined], classes),
        given_weight=given_weight,
    )


def _default_settings() -> Config:
    from trainref_ray.config import Config

    return Config()


def _build_faiss_search(vectors: np.ndarray, ids: np.ndarray) -> Search:
    from trainref_ray.retrieval.index import SupporterIndex

    return SupporterIndex.build(vectors, ids).search


@dataclass(frozen=True)
class _Inputs:
    """The arguments of `curate_arrays`, checked; `digests` int64 [N + R] are equal for copies, or None."""

    samples: np.ndarray
    labels: np.ndarray
    references: np.ndarray
    trusted: np.ndarray
    ood_samples: np.ndarray
    ood_references: np.ndarray
    classes: int
    keys: np.ndarray
    digests: np.ndarray | None


def _check(
    features: np.ndarray,
    labels: np.ndarray,
    reference_features: np.ndarray,
    reference_labels: np.ndarray,
    classes: int | None,
    class_names: Sequence[str] | None,
    keys: Sequence[str] | None,
    duplicates_of: np.ndarray | None,
    settings: Config,
    ood_features: tuple[np.ndarray, np.ndarray] | None,
) -> _Inputs:
    samples, references = _unit("features", features), _unit("reference_features", reference_features)
    if samples.shape[1] != references.shape[1]:
        raise ConfigError(f"reference_features has width {references.shape[1]}, features has {samples.shape[1]}")
    strange = (samples, references) if ood_features is None else _ood_pair(ood_features, len(samples), len(references))
    labels = _integers("labels", labels, len(samples))
    trusted = _integers("reference_labels", reference_labels, len(references))
    if classes is None:
        classes = len(class_names) if class_names is not None else int(max(labels.max(), trusted.max())) + 1
    classes = _integer("classes", classes)
    if classes < 2 or (class_names is not None and len(class_names) != classes):
        known = "" if class_names is None else f" for {len(class_names)} class_names"
        raise ConfigError(f"classes is {classes}{known}; at least 2 are needed, and as many as there are names")
    for name, values in (("labels", labels), ("reference_labels", trusted)):
        bad = np.flatnonzero((values < 0) | (values >= classes))
        if len(bad):
            raise ConfigError(f"{name}[{bad[0]}] is {values[bad[0]]}; allowed: 0 to {classes - 1}")
    missing = np.setdiff1d(np.arange(classes), trusted)
    if len(missing) and not settings.allow_missing_classes:
        raise ConfigError(
            f"reference_labels has no reference of class {missing[0]} ({len(missing)} classes without); "
            "add some, or set allow_missing_classes"
        )
    digests = _digests(duplicates_of, len(samples), len(references))
    return _Inputs(samples, labels, references, trusted, *strange, classes, _names(keys, len(samples)), digests)


def _ood_pair(features: tuple[np.ndarray, np.ndarray], samples: int, references: int) -> tuple[np.ndarray, np.ndarray]:
    pair = _unit("ood_features[0]", features[0]), _unit("ood_features[1]", features[1])
    shapes, wanted = [part.shape for part in pair], pair[0].shape[1]
    if shapes != [(samples, wanted), (references, wanted)]:
        raise ConfigError(
            f"ood_features have shapes {shapes[0]} and {shapes[1]}; {(samples, wanted)} and {(references, wanted)} "
            "are wanted, a row for each sample and each reference"
        )
    return pair


def _seed(value: Any) -> int:
    seed = _integer("seed", value)
    if not 0 <= seed < SEEDS:
        raise ConfigError(f"seed is {seed}; allowed: 0 to {SEEDS - 1}")
    return seed


def _integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ConfigError(f"{name} is {value!r}; an integer is wanted") from None


def _array(name: str, values: Any, dtype: type | None = None) -> np.ndarray:
    try:
        return np.asarray(values, dtype)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{name} is no array: {first_line(error)}; allowed: arrays, lists, and tensors on the CPU that have no "
            "gradient and a type of numpy's"
        ) from None


def _unit(name: str, values: np.ndarray) -> np.ndarray:
    """[n, D] as unit rows that went through float16, float32."""
    matrix = _array(name, values)
    if matrix.ndim != 2 or not matrix.size or not np.issubdtype(matrix.dtype, np.number):
        raise ConfigError(
            f"{name} has shape {matrix.shape} of {matrix.dtype}; a matrix of numbers [rows, width] is wanted"
        )
    try:
        return influence.unit_rows(influence.unit_rows(matrix).astype(np.float16))
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None


def _integers(name: str, values: np.ndarray, count: int) -> np.ndarray:
    labels = _array(name, values)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ConfigError(
            f"{name} has shape {labels.shape} of {labels.dtype}; an integer for each of the {count} rows is wanted"
        )
    return labels.astype(np.int64)


def _probabilities(values: np.ndarray | None, count: int, classes: int) -> np.ndarray | None:
    if values is None:
        return None
    matrix = _array("model_probabilities", values, np.float32)
    if matrix.shape != (count, classes):
        raise ConfigError(f"model_probabilities has shape {matrix.shape}; {(count, classes)} is wanted")
    bad = np.flatnonzero(~((matrix >= 0).all(axis=1) & (np.abs(matrix.sum(axis=1) - 1) < SUM_TOLERANCE)))
    if len(bad):
        raise ConfigError(
            f"model_probabilities[{bad[0]}] sums to {matrix[bad[0]].sum():.3f}; rows must not be negative and sum to 1"
        )
    return matrix


def _references_right(given: np.ndarray | None, trusted: np.ndarray, settings: Config) -> np.ndarray | None:
    """bool [R], which references have a right given label; None where nothing is fitted to that."""
    fit = settings.vote.fit_given_weight
    if given is None and fit == "always":
        raise ConfigError(
            "settings.vote.fit_given_weight always needs reference_given_labels, the labels that the references had "
            "among the samples"
        )
    if given is None or fit == "never":
        return None
    return _integers("reference_given_labels", given, len(trusted)) == trusted


def _names(keys: Sequence[str] | None, count: int) -> np.ndarray:
    names = np.arange(count).astype(str) if keys is None else np.array(list(keys), dtype=str)
    if len(names) != count:
        raise ConfigError(f"keys has {len(names)} names; one for each of the {count} rows is wanted")
    unique, counts = np.unique(names, return_counts=True)
    if len(unique) < count:
        raise ConfigError(f"keys has {str(unique[counts.argmax()])!r} {counts.max()} times; names must differ")
    return names


def _digests(duplicates_of: np.ndarray | None, count: int, given: int) -> np.ndarray | None:
    """Group numbers int64 [N + R] in place of digests; each reference is a group of its own, and each unknown value."""
    if duplicates_of is None:
        return None
    # As objects: of a list with text, any other type makes the text "nan" of NaN.
    values = _array("duplicates_of", duplicates_of, object)
    if values.shape != (count,):
        raise ConfigError(f"duplicates_of has shape {values.shape}; one value for each of the {count} rows")
    groups = np.arange(count)
    first: dict[object, int] = {}
    for row, value in enumerate(values):
        try:
            if value is not None and value == value:  # NaN does not equal itself
                groups[row] = first.setdefault(value, row)
        except (TypeError, ValueError):
            raise ConfigError(f"duplicates_of[{row}] is {value!r}; allowed: text, bytes, numbers, None, NaN") from None
    return np.concatenate([groups, count + np.arange(given)])


def _fit_probe(inputs: _Inputs, settings: Config, seed: int) -> Probe:
    """The linear head on the noisy labels, the references with their trusted ones among them (METHOD 6)."""
    try:
        return fit_probe(
            np.concatenate([inputs.samples, inputs.references]),
            np.concatenate([inputs.labels, inputs.trusted]),
            classes=inputs.classes,
            **vars(settings.probe),
            seed=seed,
        )
    except ValueError as error:
        raise ConfigError(f"settings.probe: {error}") from None


def _members(inputs: _Inputs, joined: np.ndarray) -> Members:
    """D*_ref: the rows that joined and all given references, these with uids from N on."""
    count = len(inputs.samples)
    uids = np.concatenate([np.sort(joined), count + np.arange(len(inputs.references))])
    return Members(
        uids=uids,
        labels=np.concatenate([inputs.labels, inputs.trusted])[uids],
        embeddings=np.concatenate([inputs.samples, inputs.references])[uids],
        digests=None if inputs.digests is None else inputs.digests[uids],
    )


def _augmented(
    evidence: influence.Evidence, labels: np.ndarray, classes: int, settings: Config
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples pass the evidence bar, bool [N], and the rows of those that join the reference set."""
    own = evidence.normalised[np.arange(len(labels)), labels]
    options = settings.augment
    least = augment.least_norm(evidence.norm, options.min_norm)
    passes = augment.passes_bar(own, evidence.norm, classes=classes, delta=options.delta, min_norm=least)
    rows = augment.candidates(
        np.arange(len(labels)),
        labels,
        own,
        evidence.norm,
        classes=classes,
        delta=options.delta,
        min_norm=least,
        per_class=options.per_class,
    )
    return passes, rows
