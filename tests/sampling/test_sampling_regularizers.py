"""Regularizers: values in closed form, where their gradients vanish, and what they see."""

import math

import pytest
import torch
from bits import assert_same_bits
from torch import Tensor

from noisetilt_kernels.sampling.regularizers import gradient_of, mpgr, norm, prno, spectral_deviation

N = 4096


def noise(count: int, size: int = N, seed: int = 0) -> Tensor:
    return torch.randn(count, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def permutations(count: int, several: int, size: int = N, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randperm(size, generator=generator) for _ in range(count * several)]
    return (torch.stack(drawn) if drawn else torch.empty(0, dtype=torch.int64)).view(count, several, size)


NONE = permutations(1, 0)


@pytest.mark.parametrize("regularizer", [norm, prno, mpgr])
def test_gradients_agree_with_finite_differences(regularizer: object) -> None:
    """Shifted and scaled samples, where every part of a regularizer acts, and plain noise."""
    fixed = () if regularizer is norm else (permutations(1, 3, 256),)
    for seed, (scale, shift) in enumerate([(1.3, 0.4), (0.7, -0.2), (1.0, 0.0)]):
        x, step = scale * noise(1, 256, seed) + shift, 1e-6 * noise(1, 256, 9)
        gradient = gradient_of(lambda x: regularizer(x, *fixed), x)
        change = regularizer(x + step, *fixed) - regularizer(x - step, *fixed)
        torch.testing.assert_close((gradient * step).sum() * 2, change[0], rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("regularizer", [norm, prno, mpgr])
def test_a_sample_does_not_depend_on_its_batch(regularizer: object) -> None:
    x = noise(3).float().view(3, 4, 32, 32)
    fixed = None if regularizer is norm else permutations(3, 2)

    def of(rows: slice) -> tuple[Tensor, Tensor]:
        rest = () if fixed is None else (fixed[rows],)
        return regularizer(x[rows], *rest), gradient_of(lambda x: regularizer(x, *rest), x[rows])

    values, gradients = of(slice(0, 3))
    assert values.shape == (3,) and gradients.dtype == torch.float32 and gradients.shape == x.shape
    for index in range(3):
        alone, gradient = of(slice(index, index + 1))
        assert_same_bits(alone, values[[index]])
        assert_same_bits(gradient, gradients[[index]])


# ---- norm ----


def test_the_norm_is_least_at_the_likeliest_norm_of_noise() -> None:
    x = noise(1)
    x = x / x.norm() * math.sqrt(N - 1)
    assert float(gradient_of(norm, x).norm()) < 1e-12
    outside, inside = gradient_of(norm, 1.01 * x), gradient_of(norm, 0.99 * x)
    assert float((outside * x).sum()) > 0 > float((inside * x).sum())
    # the log-density of a chi distribution with N degrees of freedom, up to a constant
    for a, b in ((60.0, 64.0), (64.0, 70.0)):
        change = norm(x / x.norm() * a) - norm(x / x.norm() * b)
        assert float(change) == pytest.approx((a**2 - b**2) / 2 - (N - 1) * math.log(a / b))


def test_the_norm_does_not_depend_on_the_direction() -> None:
    x = noise(1, 64)
    rotation = torch.linalg.qr(noise(64, 64, 1)).Q
    torch.testing.assert_close(norm(x @ rotation.T), norm(x))
    torch.testing.assert_close(gradient_of(norm, 2 * x @ rotation.T), gradient_of(norm, 2 * x) @ rotation.T)


# ---- prno ----


def ideal() -> Tensor:
    """Return a sample with rows of exact mean 0 and covariance I."""
    rows = noise(1).view(-1, 4)
    rows = rows - rows.mean(dim=0)
    factor = torch.linalg.cholesky(rows.T @ rows / len(rows))
    return torch.linalg.solve_triangular(factor, rows.T, upper=False).T.reshape(1, -1)


def test_ideal_rows_have_the_least_value_and_no_gradient() -> None:
    x = ideal()
    assert float(prno(x, NONE)) == pytest.approx(2 * math.log(2), abs=1e-12)
    assert float(gradient_of(lambda x: prno(x, NONE), x).abs().max()) == 0


def test_the_bounds_agree_with_their_formulas() -> None:
    m = N // 4
    shifted = ideal() + torch.tensor([0.3, 0.0, 0.0, 0.4]).repeat(m)
    center, deviation = 0.25, 0.25  # |mean|^2, and the largest eigenvalue of mean mean^T
    expected = m * center / 8 + m / 2 * (math.sqrt(1 + deviation) - 1 - math.sqrt(4 / m)) ** 2
    assert float(prno(shifted, NONE)) == pytest.approx(expected, rel=1e-6)
    gradient = gradient_of(lambda x: prno(x, NONE), shifted)
    assert float((gradient.view(m, 4).mean(dim=0) * torch.tensor([0.3, 0.0, 0.0, 0.4])).sum()) > 0
    # the covariance is too small in one direction: the eigenvalue is -0.75, and the others are 0
    shrunk = ideal() * torch.tensor([1.0, 1.0, 1.0, 0.5]).repeat(m)
    expected = math.log(2) + m / 2 * (math.sqrt(1.75) - 1 - math.sqrt(4 / m)) ** 2
    assert float(prno(shrunk, NONE)) == pytest.approx(expected, rel=1e-6)


def test_plain_noise_is_seldom_pushed() -> None:
    """The bound of the mean acts iff chi^2_4 > 8 log 2 / 4 * ... = 5.545: for 23.6 % of noise."""
    x = noise(600, 256)
    pushed = gradient_of(lambda x: prno(x, permutations(600, 0, 256)), x).abs().amax(dim=1) > 0
    share = float(pushed.double().mean())
    assert abs(share - 0.236) < 4 * math.sqrt(0.236 * 0.764 / 600) + 0.01  # rarely, the covariance acts


def test_a_checkerboard_is_seen_without_shuffling_and_hidden_by_it() -> None:
    board = ideal().view(-1, 4) * 0.6 + torch.tensor([1.0, -1.0, 1.0, -1.0]) * 0.8
    x = board.reshape(1, -1)
    least = 2 * math.log(2)
    assert float(prno(x, NONE)) > 100 * least
    shuffled = prno(x, permutations(1, 20)) - prno(x, NONE)
    assert float(shuffled) < 3 * least


# ---- mpgr ----


def test_noise_has_the_deviation_of_its_blocks() -> None:
    """The mean of a block has the deviation sqrt(1 - pi/4) / 4 = 0.1158, and sqrt(2/pi) of it is 0.0924."""
    x = noise(200)
    deviations = spectral_deviation(x)
    assert float(deviations.mean()) == pytest.approx(0.0924, abs=0.002)
    moments = mpgr(x, permutations(200, 1)) - 25 * torch.stack(
        [spectral_deviation(row[p]).mean() for row, p in zip(x, permutations(200, 1), strict=True)]
    )
    assert float(moments.min()) >= 0 and float(moments.mean()) < 3 / math.sqrt(N)


def test_mpgr_compares_moments_and_the_permuted_spectrum() -> None:
    x = noise(1)
    fixed = permutations(1, 1)
    shifted = 2 * x + 0.5
    expected = shifted.mean().abs() + (shifted.square().mean().sqrt() - 1).abs()
    expected = expected + 25 * spectral_deviation(shifted[0, fixed[0]])
    torch.testing.assert_close(mpgr(shifted, fixed), expected)
    assert float(mpgr(shifted, fixed)) > 5 * float(mpgr(x, fixed))
    # the order of the values does not matter, up to that of the permutation
    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(mpgr(x[:, order], torch.argsort(order)[fixed]), mpgr(x, fixed))


def test_a_spectrum_of_a_photograph_deviates_and_that_of_wgnc_does_not() -> None:
    frequencies = torch.arange(1, N // 2 + 1)
    spectrum = torch.fft.rfft(noise(1), norm="ortho")
    spectrum[:, 1:] /= frequencies
    field = torch.fft.irfft(spectrum, norm="ortho")
    assert float(spectral_deviation(field / field.std())) > 5 * 0.0924
    white = torch.ops.noisetilt.project_wgnc(noise(1))
    assert float(spectral_deviation(white)) < 1e-7
