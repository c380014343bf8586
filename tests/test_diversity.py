"""Measures of diversity: closed forms, and what they do not depend on."""

import math

import pytest
import torch
from torch import Tensor

from noisetilt_kernels.diversity import inception_score, pairwise_distance, vendi_score


def random(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_equal_images_are_one_and_orthogonal_ones_are_n(scale: float) -> None:
    lengths = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)[:, None] * scale
    equal, orthogonal = lengths * random(1, 6), lengths * torch.eye(4, 6, dtype=torch.float64)
    assert vendi_score(equal) == pytest.approx(1, abs=1e-12)
    assert vendi_score(orthogonal) == pytest.approx(4, rel=1e-12)
    assert 0 <= pairwise_distance(equal) < 1e-12
    assert pairwise_distance(orthogonal) == pytest.approx(1, rel=1e-12)


def test_two_images_at_an_angle() -> None:
    cosine = 0.6
    images = torch.tensor([[1.0, 0.0], [cosine, 0.8]], dtype=torch.float64)
    shares = ((1 + cosine) / 2, (1 - cosine) / 2)
    assert vendi_score(images) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-12)
    assert pairwise_distance(images) == pytest.approx(1 - cosine, rel=1e-12)
    assert pairwise_distance(torch.stack([images[0], -images[0]])) == pytest.approx(2, rel=1e-12)


def test_groups_of_equal_images_have_the_entropy_of_their_sizes() -> None:
    images = torch.eye(3, 5).repeat_interleave(torch.tensor([1, 2, 5]), dim=0)
    shares = (1 / 8, 2 / 8, 5 / 8)
    assert vendi_score(images) == pytest.approx(math.exp(-sum(p * math.log(p) for p in shares)), rel=1e-12)
    # pairs of images of different groups: 1 * 2 + 1 * 5 + 2 * 5 of 28
    assert pairwise_distance(images) == pytest.approx(17 / 28, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(7, 4), (4, 7), (5, 5)])
def test_vendi_score_is_the_definition_with_more_images_than_numbers_and_fewer(n: int, d: int) -> None:
    images = random(n, d)
    unit = images / images.norm(dim=1, keepdim=True)
    shares = torch.linalg.eigvalsh(unit @ unit.T / n)
    entropy = -sum(float(p) * math.log(p) for p in shares if p > 1e-12)
    assert vendi_score(images) == pytest.approx(math.exp(entropy), rel=1e-10)
    cosines = [float(unit[i] @ unit[j]) for i in range(n) for j in range(i)]
    assert pairwise_distance(images) == pytest.approx(1 - sum(cosines) / len(cosines), rel=1e-12)


def test_float32_and_half_precision_are_computed_in_float64() -> None:
    images = random(6, 300).half()
    assert vendi_score(images) == vendi_score(images.double())
    assert pairwise_distance(images.float()) == pairwise_distance(images.double())


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_images_without_a_direction_have_no_diversity(value: float) -> None:
    images = random(3, 4)
    images[1] = value
    assert math.isnan(vendi_score(images)) and math.isnan(pairwise_distance(images))


def test_inception_score_of_certain_and_of_uncertain_classes() -> None:
    certain = torch.eye(5).repeat(3, 1)
    assert inception_score(certain) == pytest.approx(5, rel=1e-12)
    assert inception_score(7 * certain) == pytest.approx(5, rel=1e-12)  # rows are scaled to a sum of 1
    assert inception_score(torch.full((4, 10), 0.1)) == pytest.approx(1, rel=1e-6)
    assert inception_score(torch.eye(5)[:1]) == pytest.approx(1)
    p, q = torch.tensor([0.9, 0.1]), torch.tensor([0.3, 0.7])
    mean = (p + q) / 2
    divergences = [sum(float(a) * math.log(a / b) for a, b in zip(one, mean, strict=True)) for one in (p, q)]
    assert inception_score(torch.stack([p, q])) == pytest.approx(math.exp(sum(divergences) / 2), rel=1e-6)
    assert math.isnan(inception_score(torch.tensor([[math.nan, 1.0]])))


def test_shapes_are_checked() -> None:
    with pytest.raises(
        ValueError, match=r"^vendi_score: embeddings must be \(n, d\) with n >= 1, got \(3,\)"
    ):
        vendi_score(torch.ones(3))
    with pytest.raises(ValueError, match=r"^pairwise_distance: embeddings .* n >= 2, got \(1, 3\)"):
        pairwise_distance(torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"^inception_score: probabilities must .*, got \(0, 3\)"):
        inception_score(torch.ones(0, 3))
