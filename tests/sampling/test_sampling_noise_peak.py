"""Peak of the noise of a guided sampler: about 1, and higher if guidance always pushes the same way."""

import pytest
import torch
from gaussian_flows import LatentFlow, brightness
from torch import Tensor

from noisetilt_kernels.sampling import SamplerOptions, ntrk, parse_method
from noisetilt_kernels.sampling.typicality import COLLAPSED, TotalNoise, spectral_peaks


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(4096,), (4, 16, 16), (16, 64, 64), (16, 5, 32, 32)])
def test_noise_has_a_peak_of_about_one(shape: tuple[int, ...]) -> None:
    peaks = spectral_peaks(noise(8, *shape))
    assert len(peaks) == 8
    assert all(0.7 < peak < 2 for peak in peaks)


def test_a_peak_is_that_of_the_periodogram() -> None:
    x = torch.zeros(2, 3, 8, 8)
    x[1, 2] = 2.0  # power 2^2 * 64 at frequency 0 of one channel
    assert spectral_peaks(x) == [0.0, pytest.approx(4 * 64 / torch.tensor(192.0).log().item())]


def test_a_sample_does_not_depend_on_its_batch() -> None:
    x = noise(3, 4, 16, 16)
    assert spectral_peaks(x) == [spectral_peaks(x[[index]])[0] for index in range(3)]


def test_noise_of_steps_is_scaled_by_its_variance() -> None:
    steps = noise(20, 8, 4, 16, 16)
    total = TotalNoise.like(steps[0])
    assert total.peaks() is None
    for index, step in enumerate(steps):
        total.add((index + 1) * step, index + 1)
    assert all(0.7 < peak < 2 for peak in total.peaks())
    for step in steps:
        total.add(5 * step + 5, 5)  # a push in the same direction at every step
    assert all(peak > 10 * COLLAPSED for peak in total.peaks())


def test_the_last_record_of_a_steered_particle_has_the_peak() -> None:
    model, options = LatentFlow((4, 16, 16), bend=0.1), SamplerOptions(seed=0, micro_batch=2)
    peaks = {}
    for rho in (0.0, 1.0):
        result = ntrk(model, brightness, ["", ""], rho=rho, operator="norm", options=options)
        *others, first, second = (
            record.noise_peak for record in sorted(result.records, key=lambda r: r.step)
        )
        assert set(others) == {None}
        peaks[rho] = first, second
    assert max(peaks[0.0]) < 2 and min(peaks[1.0]) > 2 * COLLAPSED
    for text in ("base:steps=3", "svdd:steps=3", "ntrk:steps=3,schedule=constant,scale=0"):
        result = parse_method(text).sample(model, brightness, [""], options)
        assert {record.noise_peak for record in result.records} == {None}
