"""METHOD 1: the factorised influence equals per-sample gradients, and evidence has the right sign and shape."""

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

from trainref_ray.method import influence as inf


def gradients(weight, bias, embeddings, targets):
    """Per-sample gradients [N, parameters] of cross-entropy to target distributions, by torch.func."""

    def loss(parameters, embedding, target):
        logits = parameters["weight"] @ embedding + parameters.get("bias", 0.0)
        return -(target * torch.log_softmax(logits, 0)).sum()

    parameters = {"weight": weight} | ({} if bias is None else {"bias": bias})
    found = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, embeddings, targets)
    return torch.cat([part.reshape(len(embeddings), -1) for part in found.values()], 1)


def cosine(left, right):
    return torch.nn.functional.normalize(left, dim=1) @ torch.nn.functional.normalize(right, dim=1).T


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def case(request):
    generator = torch.Generator().manual_seed(3)
    checkpoints, samples, members, width, classes = 3, 40, 15, 7, 4

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    labels = torch.randint(classes, (samples,), generator=generator)
    member_labels = torch.arange(members) % classes
    weight = draw(checkpoints, classes, width)
    bias = draw(checkpoints, classes) if request.param else None
    unit = torch.nn.functional.normalize
    return unit(draw(samples, width)), labels, unit(draw(members, width)), member_labels, weight, bias


def probabilities(weight, bias, embeddings):
    logits = torch.einsum("kcd,nd->knc", weight, embeddings)
    return torch.softmax(logits if bias is None else logits + bias[:, None], -1)


@pytest.mark.parametrize("label_free", [True, False])
def test_equals_per_sample_gradients(case, label_free):
    embeddings, labels, member_embeddings, member_labels, weight, bias = case
    classes = weight.shape[1]
    eye = torch.eye(classes)
    targets = torch.full((len(labels), classes), 1 / classes) if label_free else eye[labels]
    expected = torch.zeros(len(labels), len(member_labels))
    for k in range(len(weight)):
        own_bias = None if bias is None else bias[k]
        left = gradients(weight[k], own_bias, embeddings, targets)
        right = gradients(weight[k], own_bias, member_embeddings, eye[member_labels])
        expected += cosine(left, right) * cosine(embeddings, member_embeddings).clamp_min(0) / len(weight)
    p, member_p = probabilities(weight, bias, embeddings), probabilities(weight, bias, member_embeddings)
    residual = inf.label_free_residuals(p) if label_free else inf.residuals(p, labels.expand(len(weight), -1))
    found = inf.influence(
        embeddings, residual, member_embeddings, inf.residuals(member_p, member_labels.expand(3, -1)), bias is not None
    )
    assert (found - expected).abs().max() < 1e-5
    assert found.abs().max() > 0.1


def test_class_evidence_is_minus_the_mean_influence_of_the_class(case):
    embeddings, _, member_embeddings, member_labels, weight, bias = case
    classes = weight.shape[1] + 1  # the last class has no member
    p, member_p = probabilities(weight, bias, embeddings), probabilities(weight, bias, member_embeddings)
    p, member_p = (torch.nn.functional.pad(part, (0, 1)) for part in (p, member_p))
    matrix = inf.influence(
        embeddings,
        inf.label_free_residuals(p),
        member_embeddings,
        inf.residuals(member_p, member_labels.expand(3, -1)),
        bias is not None,
    )
    expected = np.zeros((len(embeddings), classes), np.float32)
    for label in range(classes - 1):
        expected[:, label] = -matrix[:, member_labels == label].mean(1).numpy()
    for block in (7, 4096):
        found = inf.class_evidence(
            embeddings.numpy(),
            p.numpy(),
            member_embeddings.numpy(),
            member_p.numpy(),
            member_labels.numpy(),
            classes=classes,
            bias=bias is not None,
            block=block,
        )
        np.testing.assert_allclose(found.norm, np.linalg.norm(expected, axis=1), atol=1e-6)
        np.testing.assert_allclose(found.normalised * found.norm[:, None], expected, atol=1e-6)
        assert (found.normalised[:, -1] == 0).all()
        np.testing.assert_allclose(np.linalg.norm(found.normalised, axis=1), 1, atol=1e-6)


def test_residual_keeps_its_direction_when_the_model_is_sure():
    p = torch.tensor([[1.0, 1e-12, 3e-12]])
    found = inf.residuals(p, torch.tensor([0]))[0].double()
    assert torch.allclose(found, torch.tensor([-4e-12, 1e-12, 3e-12]).double(), rtol=1e-6, atol=0)
    unit = inf._unit(inf.residuals(p * 1e-20, torch.tensor([0])))
    assert torch.allclose(unit.norm(), torch.tensor(1.0))


def test_cosine_with_nothing_is_zero_and_opposed_embeddings_count_as_nothing():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    r = torch.tensor([[[0.5, -0.5]] * 3])
    member = torch.tensor([[1.0, 0.0]])
    assert inf.influence(z, r, member, r[:, :1], False)[:, 0].tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert inf.influence(z, torch.zeros_like(r), member, r[:, :1], True).abs().max() == 0


def test_a_sample_of_a_class_has_evidence_for_it():
    z = np.eye(3, dtype=np.float32)
    p = np.full((1, 3, 3), 0.1, np.float32) + 0.7 * np.eye(3, dtype=np.float32)[None]
    found = inf.class_evidence(z, p, z, p, np.arange(3), classes=3, bias=True)
    assert found.normalised.argmax(1).tolist() == [0, 1, 2]
    soft, none = inf.soft_labels(found.normalised)
    assert soft.argmax(1).tolist() == [0, 1, 2]
    assert not none.any()


def test_soft_labels_by_hand():
    soft, none = inf.soft_labels(np.array([[0.6, 0.2, -0.8], [-0.5, -0.5, 0.0]]))
    np.testing.assert_allclose(soft, [[0.75, 0.25, 0], [1 / 3] * 3], rtol=1e-6)
    assert none.tolist() == [False, True]


def test_without_members_or_samples_there_is_no_evidence():
    empty = np.zeros((0, 2), np.float32)
    found = inf.class_evidence(
        np.eye(2, dtype=np.float32),
        np.full((1, 2, 3), 1 / 3, np.float32),
        empty,
        np.zeros((1, 0, 3), np.float32),
        np.zeros(0, np.int64),
        classes=3,
        bias=True,
    )
    assert found.normalised.tolist() == [[0.0] * 3] * 2
    assert found.norm.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("length", [1e308, 1e300, 1e-50, 1e-310])
def test_unit_rows_of_any_length(length):
    found = inf.unit_rows(np.array([[0.6, 0.8], [0.6 * length, 0.8 * length]]))
    np.testing.assert_allclose(found, [[0.6, 0.8]] * 2, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_unit_rows_of_narrow_types_are_those_of_the_definition_to_the_bit(dtype):
    rows = np.random.default_rng(0).normal(size=(50, 7)).astype(dtype) * dtype(1000)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_array_equal(inf.unit_rows(rows), (rows / lengths).astype(np.float32))


def test_unit_rows_names_the_bad_row():
    np.testing.assert_allclose(inf.unit_rows(np.array([[3, 4]], np.float16)), [[0.6, 0.8]], rtol=1e-6)
    for bad in (0.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="row 1 "):
            inf.unit_rows(np.array([[1.0, 0.0], [bad, 0.0]]))
