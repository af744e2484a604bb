"""Curation of arrays: finds wrong labels and foreign samples, repeats itself, refuses what does not fit."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from trainref_ray import arrays
from trainref_ray.arrays import curate_arrays
from trainref_ray.config import make_config
from trainref_ray.errors import ConfigError
from trainref_ray.evaluate import metrics
from trainref_ray.retrieval.exact import build_exact_search

CLASSES = 4
SETTINGS = make_config({"vote": {"k": 5}, "augment": {"per_class": 30}})

ALL_SUPPORT = make_config({"vote": {"k": 271}, "augment": {"per_class": 260, "delta": -1, "min_norm": 0}})
"""Every sample joins the reference set and supports every other one."""

UNEQUAL = make_config({"vote": {"k": 5}, "augment": {"per_class": 260}})
"""Classes have different numbers of members."""
FEW_STEPS = make_config({"probe": {"epochs": 1}})


@pytest.fixture(scope="module")
def data():
    """240 samples around 4 centres, 30 % with a wrong label, 20 foreign ones; 3 references a class."""
    generator = np.random.default_rng(0)
    centres = np.linalg.qr(generator.normal(size=(16, 16)))[0][: CLASSES + 1] * 3.0
    truth = np.concatenate([np.arange(240) % CLASSES, np.full(20, -1)])
    features = centres[truth] + generator.normal(size=(260, 16)) * 0.6
    labels = np.where(truth >= 0, truth, generator.integers(0, CLASSES, 260))
    wrong = generator.permutation(240)[:72]
    labels[wrong] = (labels[wrong] + generator.integers(1, CLASSES, 72)) % CLASSES
    reference_labels = np.arange(12) % CLASSES
    return features, labels, centres[reference_labels] + generator.normal(size=(12, 16)) * 0.6, reference_labels, truth


def curate(data, **changes):
    return curate_arrays(*data[:4], **({"settings": SETTINGS} | changes))


@pytest.fixture(scope="module")
def result(data):
    return curate(data)


@pytest.fixture(scope="module")
def unequal(data):
    return curate(data, settings=UNEQUAL)


def test_finds_wrong_labels_and_foreign_samples(data, result):
    _, labels, _, _, truth = data
    nobody = np.zeros(260, bool)
    found = metrics.noise_metrics(result.label_quality, labels, truth, nobody, result.decision != "keep")
    assert found["noise_auroc"] > 0.97
    assert metrics.relabel_accuracy(result.best_class, truth, nobody) > 0.95
    assert metrics.ood_metrics(result.ood_raw, labels, truth, nobody, result.decision == "ood")["ood_auroc"] > 0.95
    assert (truth != labels)[result.in_reference_set].mean() < 0.05


def test_few_samples_give_no_cut_and_no_foreign_ones(data):
    few = curate((data[0][::8], data[1][::8], *data[2:]))
    assert few.ood_cut == np.inf
    assert not (few.decision == "ood").any()
    assert (np.diff(few.ood_score[np.argsort(few.ood_raw)]) >= 0).all()
    assert few.ood_score.std() > 0


def test_result_is_consistent(data, result):
    labels = data[1]
    assert result.soft_label.shape == (260, CLASSES)
    out = result.decision == "ood"
    assert (out == (result.ood_score > 0.5)).all()
    assert (out == (result.ood_raw > result.ood_cut)).all()
    np.testing.assert_allclose(result.soft_label.sum(1), np.where(out, 0, 1), atol=1e-5)
    relabelled = result.decision == "relabel"
    assert relabelled.any()
    assert (result.soft_label[relabelled].argmax(1) != labels[relabelled]).all()
    assert result.keys.tolist() == [str(row) for row in range(260)]
    assert len(result.reasons) == 260
    assert result.classes_left_short == []
    assert np.bincount(labels[result.in_reference_set], minlength=CLASSES).max() <= 30


def test_supporters_point_to_samples_and_references(data, result):
    _, labels, _, trusted, _ = data
    assert (result.supporters != np.arange(260)[:, None]).all()
    assert (result.supporters >= 0).all()
    expected = np.concatenate([labels, trusted])[result.supporters]
    assert (result.supporter_label == expected).all()
    samples = result.supporters[result.supporters < 260]
    assert result.in_reference_set[samples].all()
    assert (result.supporters >= 260).any()
    assert result.supporters.max() < 260 + result.given_references
    assert (np.diff(result.supporter_similarity) <= 0).all()


def test_a_seed_is_any_integer_from_zero(data):
    assert curate(data, seed=np.int64(3)).reasons == curate(data, seed=3).reasons != curate(data, seed=4).reasons
    curate(data, seed=2**63 - 1)


def test_repeats_itself_and_ignores_the_length_of_features(data, result):
    scaled = curate((data[0] * 8.0, *data[1:]))  # a power of two: the directions are equal to the bit
    assert (scaled.soft_label == result.soft_label).all()
    assert scaled.reasons == result.reasons


@pytest.mark.parametrize(
    "changes",
    [
        {"ood": {"score": "knn"}},
        {"ood": {"score": "mahalanobis"}},
        {"vote": {"k": 5, "diversity": True}},
        {"probe": {"bias": False}},
        {"augment": {"per_class": 0}},
    ],
)
def test_other_settings(data, changes):
    result = curate(data, settings=make_config(SETTINGS.model_dump(), changes))
    assert metrics.relabel_accuracy(result.best_class, data[4], np.zeros(260, bool)) > 0.9
    if changes == {"augment": {"per_class": 0}}:
        assert result.classes_left_short == list(range(CLASSES))
        assert not result.in_reference_set.any()
        assert (result.supporters >= 260).all()


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"probe": {"epochs": 5}}, "label_quality"),
        ({"augment": {"delta": 0.99}}, "in_reference_set"),
        ({"augment": {"min_norm": 1.0}}, "in_reference_set"),
        ({"vote": {"k": 9}}, "supporters"),
        ({"vote": {"near_duplicate": 0.9}}, "supporters"),
        ({"vote": {"diversity": True}}, "supporters"),
        ({"vote": {"balance": 0.5}}, "label_quality"),
        ({"vote": {"temperature": 0.7}}, "label_quality"),
        ({"vote": {"given_weight": 0.5}}, "label_quality"),
        ({"vote": {"vote_weight": 0.5}}, "label_quality"),
        ({"vote": {"influence_weight": 0.5}}, "label_quality"),
        ({"vote": {"model_weight": 0.5}}, "label_quality"),
        ({"ood": {"score": "mahalanobis"}}, "ood_raw"),
        ({"ood": {"shrinkage": 0.3}}, "ood_raw"),
        ({"ood": {"fit_samples": 20}}, "ood_raw"),
        ({"ood": {"calibration_samples": 20}}, "ood_cut"),
        ({"ood": {"quantile": 0.8}}, "ood_cut"),
        ({"decide": {"keep_at": 0.99}}, "decision"),
        ({"decide": {"relabel_entropy": 0.1}}, "decision"),
        ({"decide": {"keep_as": "hard"}}, "soft_label"),
        ({"decide": {"relabel_as": "hard"}}, "soft_label"),
    ],
)
def test_each_setting_changes_what_it_is_for(data, unequal, changes, changed):
    found = curate(data, settings=make_config(UNEQUAL.model_dump(), changes))
    assert not np.array_equal(getattr(found, changed), getattr(unequal, changed))


def test_the_draw_of_the_cut_goes_by_the_seed(data):
    # all samples pass whatever the probe's seed, so that the draw alone makes the difference
    first, second = (curate(data, settings=ALL_SUPPORT, seed=seed) for seed in (0, 1))
    assert (first.ood_raw != second.ood_raw).any()


def test_the_search_that_is_handed_in_is_used(data, result):
    built = []

    def build(vectors, ids):
        built.append(ids)
        return build_exact_search(vectors, ids)

    found = curate(data, build_search=build)
    (ids,) = built
    assert ids.tolist() == [*np.flatnonzero(result.in_reference_set), *range(260, 272)]
    assert (found.supporters == result.supporters).all()


def test_references_are_copies_of_no_sample(data):
    different = curate(data, settings=ALL_SUPPORT, duplicates_of=np.arange(260))
    assert (different.supporters == curate(data, settings=ALL_SUPPORT).supporters).all()
    assert (np.sort(different.supporters, axis=1)[:, -12:] == np.arange(260, 272)).all()


def test_copies_do_not_support_each_other(data):
    group = np.arange(260) // 2
    result = curate(data, duplicates_of=group)
    copy = np.arange(260) ^ 1
    assert (result.supporters != copy[:, None]).all()
    assert (curate(data).supporters == copy[:, None]).any()


@pytest.mark.parametrize(
    "unknown",
    [[None] * 260, [np.nan] * 260, np.full(260, np.nan), [None, np.nan] * 130, ["of one", None] + [np.nan] * 258],
)
def test_unknown_values_make_no_copies(data, result, unknown):
    found = curate(data, duplicates_of=unknown)
    assert (found.supporters == result.supporters).all()


def test_known_values_among_unknown_ones_are_compared(data):
    copies = ["same", "same", None, None, np.nan, np.nan, 7, 7.0] + [None] * 252
    found = curate(data, settings=ALL_SUPPORT, duplicates_of=copies)
    supported = [row + 1 in found.supporters[row] for row in (0, 2, 4, 6)]
    assert supported == [False, True, True, False]


def test_keys_and_class_names_are_used(data):
    keys = [f"image-{row}" for row in range(260)]
    result = curate(data, keys=keys, class_names=["ant", "bee", "cow", "doe"])
    assert result.keys.tolist() == keys
    assert any("bee" in reason for reason in result.reasons)


@pytest.mark.parametrize(
    ("place", "value", "changes", "message"),
    [
        (0, np.zeros((260, 16)), {}, "features: row 0 has length 0"),
        (0, np.ones(260), {}, r"features has shape \(260,\)"),
        (2, np.ones((12, 15)), {}, "reference_features has width 15, features has 16"),
        (1, np.zeros(259, int), {}, r"labels has shape \(259,\)"),
        (1, np.zeros(260), {}, "labels has shape .* float64; an integer"),
        (1, np.full(260, 9), {"classes": 4}, r"labels\[0\] is 9; allowed: 0 to 3"),
        (3, np.full(12, -1), {}, r"reference_labels\[0\] is -1; allowed: 0 to"),
        (3, np.zeros(12, int), {}, "no reference of class 1"),
        (None, None, {"classes": 5, "class_names": list("abcd")}, "classes is 5 for 4 class_names"),
        (None, None, {"classes": 4.0}, "classes is 4.0; an integer is wanted"),
        (None, None, {"seed": 1.5}, "seed is 1.5; an integer is wanted"),
        (None, None, {"seed": -5}, "seed is -5; allowed: 0 to 9223372036854775807"),
        (None, None, {"seed": 2**63}, "seed is 9223372036854775808; allowed: 0 to 9223372036854775807"),
        (None, None, {"settings": FEW_STEPS}, "settings.probe: 1 steps are too few for 3 checkpoints: raise epochs"),
        (0, torch.ones(260, 16, dtype=torch.bfloat16), {}, "features is no array: .*BFloat16; allowed: arrays"),
        (2, torch.ones(12, 16, requires_grad=True), {}, "reference_features is no array: .*grad.*; allowed: arrays"),
        (1, [[0], [0, 1]], {}, "labels is no array"),
        (None, None, {"model_probabilities": [["a"] * 4] * 260}, "model_probabilities is no array"),
        (None, None, {"duplicates_of": torch.ones(260, requires_grad=True)}, "duplicates_of is no array"),
        (None, None, {"keys": ["same"] * 260}, "'same' 260 times"),
        (None, None, {"keys": ["a"]}, "keys has 1 names"),
        (None, None, {"duplicates_of": np.zeros(3)}, r"duplicates_of has shape \(3,\)"),
        (None, None, {"duplicates_of": [None, {}] * 130}, r"duplicates_of\[1\] is \{\}; allowed: text"),
    ],
)
def test_what_does_not_fit_is_refused(data, place, value, changes, message):
    arrays = list(data)
    if place is not None:
        arrays[place] = value
    with pytest.raises(ConfigError, match=message):
        curate(arrays, **changes)


def test_a_class_without_a_reference_can_be_allowed(data):
    features, labels, reference_features, reference_labels, _ = data
    kept = reference_labels != 3
    result = curate_arrays(
        features,
        labels,
        reference_features[kept],
        reference_labels[kept],
        classes=CLASSES,
        settings=SETTINGS.model_copy(update={"allow_missing_classes": True}),
    )
    assert 3 in result.classes_left_short


def test_the_weight_of_the_given_label_is_fitted_to_the_references_own(data):
    fitting = make_config({"vote": {"k": 5, "temperature": 4.0}})
    trusted = data[3]
    all_right = curate(data, settings=fitting, reference_given_labels=trusted)
    none_right = curate(data, settings=fitting, reference_given_labels=(trusted + 1) % CLASSES)
    assert none_right.given_weight < 1 < all_right.given_weight
    assert none_right.label_quality.mean() < all_right.label_quality.mean()
    fixed = make_config(
        {"vote": {"k": 5, "temperature": 4.0, "given_weight": all_right.given_weight, "fit_given_weight": "never"}}
    )
    np.testing.assert_array_equal(curate(data, settings=fixed).label_quality, all_right.label_quality)
    assert curate(data, settings=fixed, reference_given_labels=trusted).given_weight == all_right.given_weight
    assert curate(data, settings=fitting).given_weight == 1, "these references may be chosen ones"
    always = make_config({"vote": {"k": 5, "temperature": 4.0, "fit_given_weight": "always"}})
    assert curate(data, settings=always, reference_given_labels=trusted).given_weight == all_right.given_weight
    with pytest.raises(ConfigError, match="always needs reference_given_labels, the labels that the references had"):
        curate(data, settings=always)
    with pytest.raises(ConfigError, match=f"an integer for each of the {len(trusted)} rows is wanted"):
        curate(data, settings=fitting, reference_given_labels=trusted[1:])


def test_what_is_out_of_distribution_has_no_say_in_the_fitted_weight(data, monkeypatch):
    """As among the references, there is nothing foreign."""
    seen = []
    fit = arrays.fitted_given_weight
    monkeypatch.setattr(arrays, "fitted_given_weight", lambda *args, **named: seen.append(args) or fit(*args, **named))
    fitting = make_config({"vote": {"k": 5, "temperature": 4.0}})
    found = curate(data, settings=fitting, reference_given_labels=data[3])
    inside = found.decision != "ood"
    assert 0 < inside.sum() < len(inside)
    combined, labels = seen[0][:2]
    np.testing.assert_array_equal(labels, data[1][inside])
    assert len(combined) == len(labels)


def test_needs_neither_ray_nor_mlflow():
    code = "import sys, trainref_ray.arrays; sys.exit('ray' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def model_alone(source: str):
    weights = {"vote_weight": 0.0, "influence_weight": 0.0, "model_weight": 1.0, "given_weight": 0.0}
    return make_config({"vote": {"k": 5, "temperature": 1.0, "model_source": source} | weights})


def test_the_models_own_probabilities_are_a_source(data):
    model = np.random.default_rng(1).dirichlet(np.ones(CLASSES), 260).astype(np.float32)
    found = curate(data, settings=model_alone("head"), model_probabilities=model)
    kept = found.decision != "ood"
    np.testing.assert_allclose(
        found.label_quality[kept], model[np.arange(260), data[1]][kept], atol=1e-3
    )  # kept as float16
    probe = curate(data, settings=model_alone("probe"), model_probabilities=model)
    without = curate(data, settings=model_alone("head"))
    np.testing.assert_array_equal(probe.label_quality, without.label_quality)
    assert not np.allclose(probe.label_quality, found.label_quality, atol=0.05)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (np.full((260, CLASSES + 1), 0.2), r"model_probabilities has shape \(260, 5\); \(260, 4\) is wanted"),
        (np.full((260, CLASSES), 0.5), r"model_probabilities\[0\] sums to 2.000"),
        (np.full((260, CLASSES), np.nan), r"model_probabilities\[0\] sums to nan"),
    ],
)
def test_probabilities_that_are_none_are_refused(data, model, message):
    with pytest.raises(ConfigError, match=message):
        curate(data, model_probabilities=model)


def test_strange_images_are_told_by_other_features_where_there_are_some(data):
    features, labels, references, _, truth = data
    drawn_in = np.where(truth[:, None] >= 0, features, features[labels])  # as by a fine-tuning
    blind = curate((drawn_in, *data[1:]))
    told = curate((drawn_in, *data[1:]), ood_features=(features, references))
    nobody = np.zeros(260, bool)
    found = [metrics.ood_metrics(one.ood_raw, labels, truth, nobody, one.decision == "ood") for one in (blind, told)]
    assert found[0]["ood_auroc"] < 0.7
    assert found[1]["ood_auroc"] > 0.95
    assert (told.label_quality == blind.label_quality).all()
    with pytest.raises(ConfigError, match=r"ood_features have shapes \(260, 16\) and \(11, 16\)"):
        curate(data, ood_features=(features, references[:11]))
