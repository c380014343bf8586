"""The whitening operator W: its effect on noise and on structure, and its stages against the reference."""

import math

import pytest
import torch
from bits import assert_same_bits, bit_patterns
from inputs import noise, values
from tolerances import cosine
from torch import Tensor

import noisetilt_kernels as nt
from bench.inputs import FLUX, STRUCTURED, power_law
from bench.whitening_sizes import low_band
from noisetilt_kernels import python_ref
from noisetilt_kernels.backends import reference
from noisetilt_kernels.config import FULL, Sample, resolve, resolve_preset

whiten = torch.ops.noisetilt.whiten

REAL = (torch.float32, torch.float64)


def peak(x: Tensor) -> float:
    """Return the largest |fft2(channel)|^2 of samples (..., H, W), scaled to mean 1."""
    power = torch.fft.fft2(x.double(), norm="ortho").abs().square()
    return float(power.max() / power.mean())


def by_reference(x: Tensor) -> Tensor:
    """Whiten samples (B, C, H, W) by python_ref."""
    return reference.whiten(x, resolve_preset("auto", Sample(*x.shape[1:]), 1e-3))


# ---- noise ----


@pytest.mark.parametrize("dtype", REAL)
def test_noise_keeps_its_direction(dtype: torch.dtype) -> None:
    x = noise(100, dtype=dtype)
    assert float(cosine(x, whiten(x)).min()) > 0.99999


@pytest.mark.slow
def test_noise_of_the_wan_preset_keeps_its_direction() -> None:
    x = noise(2, (16, 21, 60, 104))
    result = whiten(x, "wan")
    assert float(cosine(x, result).min()) > 0.99999
    assert_same_bits(whiten(x.flatten(1, 2), "wan"), result.flatten(1, 2), "frames are channels")


# ---- structure ----


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", STRUCTURED)
def test_structure_becomes_white(name: str, dtype: torch.dtype) -> None:
    x = torch.stack([STRUCTURED[name](seed) for seed in range(3)]).to(dtype)
    for sample, result in zip(x, whiten(x), strict=True):
        assert float(result.double().norm()) == pytest.approx(math.sqrt(sample.numel()), rel=0.015)
        assert peak(result) < 60
        # the input does not pass this test
        if name in ("1/k", "1/k^1.5", "1/k^2", "sinusoids"):
            assert peak(sample) > 200


def test_the_direction_of_structure_survives() -> None:
    """DESIGN section 5: cosine 0.70 on 1/f fields and 0.46 on sinusoids with 30 % noise, here with one seed
    each.
    """
    x = torch.stack([STRUCTURED["1/k"](0), STRUCTURED["sinusoids"](0)])
    similarity = cosine(x, whiten(x))
    assert float(similarity[0]) > 0.65
    assert float(similarity[1]) > 0.40


@pytest.mark.parametrize(
    ("name", "allowed"), [("1/k", 0.06), ("sinusoids", 0.06), ("repeated channel", 0.08)]
)
def test_the_scale_of_the_input_hardly_matters(name: str, allowed: float) -> None:
    x = STRUCTURED[name](0)
    scaled = torch.stack([x * 10.0**exponent for exponent in range(-4, 5)])
    result = whiten(scaled)
    similarity = cosine(scaled, result)
    assert float(similarity.max() - similarity.min()) < allowed
    norms = result.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, math.sqrt(x.numel())), rtol=0.015, atol=0)


@pytest.mark.parametrize("fill", [0.0, -0.0, 1.0, -1e30, 1e-40])
def test_a_constant_sample_becomes_finite_with_typical_norm(fill: float) -> None:
    result = whiten(torch.full(FLUX, fill))
    assert bool(result.isfinite().all())
    assert float(result.norm()) == pytest.approx(256, rel=0.05)


@pytest.mark.parametrize(
    "shape", [(16, 96, 170), (4, 128, 128), (32, 32, 32), (4096,), (2, 6, 10), (3, 4, 1)]
)
def test_auto_serves_other_shapes(shape: tuple[int, ...]) -> None:
    x = values("normal", shape)
    result = whiten(x[None] if len(shape) == 1 else x)
    assert bool(result.isfinite().all())
    assert result.numel() == x.numel()
    if x.numel() > 1000:
        assert float(cosine(x.reshape(1, -1), result.reshape(1, -1))) > 0.9999


# ---- sizes that tiles do not divide ----


@pytest.mark.parametrize(
    ("shape", "divided"), [((16, 166, 166), (16, 160, 160)), ((16, 134, 240), (16, 128, 240))]
)
def test_sizes_with_few_divisors_become_as_white_as_others(
    shape: tuple[int, ...], divided: tuple[int, ...]
) -> None:
    """With tiles that are divisors, 2x2 and 2x16, W leaves a quarter more power at long wavelengths."""
    low, expected = (low_band(whiten(power_law(1.0, size).float())) for size in (shape, divided))
    assert low < 1.1 * expected
    x = noise(1, shape)
    assert float(cosine(x, whiten(x))) > 0.99999


@pytest.mark.parametrize("shape", [(16, 47, 45), (16, 53, 64), (16, 1, 1031), (4, 31, 34), (3, 50, 94)])
def test_odd_sides_and_primes_become_white(shape: tuple[int, ...]) -> None:
    structure, x = power_law(1.0, shape).float(), noise(1, shape)
    result = whiten(structure)
    assert float(result.norm()) == pytest.approx(math.sqrt(result.numel()), rel=0.015)
    assert peak(result) < 60
    assert float(cosine(x, whiten(x))) > 0.9999


def test_the_preset_wan_at_720p() -> None:
    x = noise(1, (16, 2, 90, 160))
    result = whiten(x, "wan")
    assert_same_bits(whiten(x[0].flatten(0, 1), "wan"), result[0].flatten(0, 1), "frames are channels")
    assert float(cosine(x, result)) > 0.99999


@pytest.mark.parametrize("dtype", REAL)
def test_whitened_samples_of_uneven_tiles_have_the_bits_of_the_reference(dtype: torch.dtype) -> None:
    """64 = 8*8 values of each channel: the rounding of the FFT of 2^k values is defined."""
    for shape, tile, mixing in (((8, 2, 64), (2, 6), (2, 10)), ((16, 1, 256), (1, 6), (1, 12))):
        config = nt.WhiteningConfig((4, 16), (tile,), ((FULL, 0), (mixing, 0)))
        x = values("1/k", (2, *shape), dtype)
        assert_same_bits(nt.whiten(x, config), reference.whiten(x, resolve(config, Sample(*shape))))


# ---- not finite ----


@pytest.mark.parametrize("dtype", [torch.float16, *REAL])
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_a_sample_that_is_not_finite_is_nan_throughout(special: float, dtype: torch.dtype) -> None:
    x = noise(3, dtype=torch.float32).to(dtype)
    x[2] = STRUCTURED["1/k"](0)
    untouched = whiten(x)
    x[1, 15, 63, 63] = special
    result = whiten(x)
    assert bool(result[1].isnan().all())
    assert_same_bits(result[::2].contiguous(), untouched[::2].contiguous(), "the other samples")


# ---- against the reference ----


@pytest.mark.parametrize("dtype", REAL)
@pytest.mark.parametrize("name", ["noise", *STRUCTURED])
def test_whitened_latents_of_2_to_the_k_values_have_the_bits_of_the_reference(
    name: str, dtype: torch.dtype
) -> None:
    """The rounding of their FFT is defined. W amplifies it where values nearly tie."""
    x = noise(2, dtype=dtype) if name == "noise" else STRUCTURED[name](0)[None].to(dtype)
    assert_same_bits(whiten(x), by_reference(x))


OTHER = (6, 24, 40)
"""Shape of a latent whose FFT is torch's."""


def test_whitened_noise_of_other_sizes_is_the_reference() -> None:
    x = noise(2, OTHER)
    assert float(cosine(whiten(x), by_reference(x)).min()) >= 0.999999


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", REAL)
def test_whitened_power_laws_of_other_sizes_are_the_reference(beta: float, dtype: torch.dtype) -> None:
    x = power_law(beta, (6, 24, 40))[None].to(dtype)
    assert float(cosine(whiten(x), by_reference(x))) >= 0.999


@pytest.mark.parametrize("distribution", ["normal", "1/k", "few values", "spikes", "everything"])
@pytest.mark.parametrize("dtype", REAL)
def test_the_fused_stages_have_the_bits_of_the_reference(distribution: str, dtype: torch.dtype) -> None:
    """Compute W stage by stage with the reference and the FFT of the public operator."""
    x = values(distribution, (1, 4, 24, 40), dtype)
    config = nt.WhiteningConfig((4, 16), ((4, 4), (3, 8)), (((24, 40), 10), ((3, 8), 5)))

    def project(x: Tensor, expected_only: bool = False) -> Tensor:
        for chunk_size in config.chunk_sizes:
            lower, upper = (t.to(dtype) for t in nt.confidence_table(x[0].numel() // chunk_size, chunk_size))
            x = python_ref.project_2os(x.flatten(1), lower, upper).view_as(x)
        for tile in config.tile_sizes:
            x = reference.project_tile_stats(x, tile, config.chunk_sizes, config.alpha)
        return x

    y = torch.where(x.isfinite().all(), x, torch.nan)
    y = project(y)
    y = torch.ops.noisetilt.compact_fourier(
        project(torch.ops.noisetilt.compact_fourier(y.flatten(1)).view_as(x)).flatten(1), True
    )
    y = y.view_as(x)
    for tile, repeats in config.mixing:
        for _ in range(repeats):
            y = project(python_ref.butterfly(y, tile, 1))
        y = python_ref.butterfly_inverse(y, tile, repeats)
    assert_same_bits(nt.whiten(x, config), y)


# ---- batches, strides, dtypes, configurations ----


@pytest.mark.parametrize("dtype", REAL)
def test_batch_equals_singles(dtype: torch.dtype) -> None:
    x = torch.stack([*noise(2, dtype=dtype), *(field(0).to(dtype) for field in STRUCTURED.values())])
    for sample, result in zip(x, whiten(x), strict=True):
        assert_same_bits(whiten(sample), result)


def test_strided_input() -> None:
    x = noise(2, (64, 64, 32))
    for strided in (x.transpose(1, 3), x[:, ::4], x[:1, :16].expand(3, -1, -1, -1)):
        before = strided.clone()
        result = whiten(strided)
        assert_same_bits(result, whiten(strided.contiguous()))
        assert result.is_contiguous()
        assert_same_bits(strided, before, "the input")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    x = noise(1)[0].to(dtype)
    assert_same_bits(whiten(x), whiten(x.float()).to(dtype))


def test_the_default_is_auto_and_a_preset_equals_its_name() -> None:
    x = STRUCTURED["1/k"](0).float()
    assert_same_bits(nt.whiten(x), whiten(x))
    assert_same_bits(nt.whiten(x, nt.preset("flux")), whiten(x, "flux"))
    assert_same_bits(whiten(x), whiten(x, "auto", 1e-3))
    assert bool((bit_patterns(whiten(x, "flux", 1e-2)) != bit_patterns(whiten(x))).any()), (
        "alpha has no effect"
    )


def test_a_wider_interval_changes_less() -> None:
    x = STRUCTURED["1/k"](0)[None]
    similarity = [float(cosine(x, whiten(x, "flux", alpha))) for alpha in (1e-1, 1e-3, 1e-12)]
    assert similarity == sorted(similarity)


def test_repeated_calls_give_the_same_bits() -> None:
    """No state is kept between calls."""
    x = STRUCTURED["sparse spikes"](0).float()
    first = whiten(x)
    whiten(noise(1))
    whiten(x.double())
    assert_same_bits(whiten(x), first)


# ---- the simpler operators of the comparison ----


def test_norm_projection_and_identity() -> None:
    x = noise(3, (4, 8, 8)) * torch.tensor([1e-3, 1.0, 0.0]).view(3, 1, 1, 1)
    assert python_ref.identity(x) is x
    result = python_ref.norm_projection(x)
    torch.testing.assert_close(result.flatten(1).norm(dim=1), torch.tensor([16.0, 16.0, 0.0]))
    torch.testing.assert_close(cosine(x[:2], result[:2]), torch.ones(2).double())
