"""Code written for other libraries runs after one changed import."""

import math
import re

import pytest
import scipy.linalg
import torch
from bits import assert_same_bits
from inputs import noise, values
from tolerances import ROUNDED_ONCE, relative_error
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import drop_in

# A rotation layer of quantisation libraries, and the loop of WGNC's noise optimisation. Only the import is
# replaced.

HADAMARD_CALLER = """
import torch
from fast_hadamard_transform import hadamard_transform

class Rotation(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.sign = torch.nn.Parameter(torch.where(torch.arange(dim) % 3 == 0, -1.0, 1.0))

    def forward(self, x):
        return hadamard_transform(x * self.sign, scale=x.shape[-1] ** -0.5)

def run(x):
    layer = Rotation(x.shape[-1])
    y = layer(x)
    y.square().mul(torch.arange(x.shape[-1])).sum().backward()
    return y.detach(), layer.sign.detach(), layer.sign.grad
"""

WGNC_CALLER = """
import torch
from wgnc import project_wgnc

def run(x, reward, steps, lr):
    noise = torch.nn.Parameter(x)
    optimizer = torch.optim.Adam([noise], lr=lr)
    for _ in range(steps):
        (-reward(noise)).backward()
        noise.grad = project_wgnc(noise.grad, block_size=16)
        optimizer.step()
        optimizer.zero_grad()
        noise.data = project_wgnc(noise.data, block_size=16)
    return noise.detach()
"""


def foreign(source: str, package: str) -> dict:
    """Return the namespace of `source` after its only import of `package` is replaced."""
    changed, count = re.subn(
        rf"^from {package} import", "from noisetilt_kernels.drop_in import", source, flags=re.MULTILINE
    )
    assert count == 1
    namespace: dict = {}
    exec(changed, namespace)
    return namespace


def hadamard_matrix(size: int) -> Tensor:
    """Return the upper left part of the Walsh-Hadamard matrix of the next power of two."""
    padded = 1 << (size - 1).bit_length()
    return torch.from_numpy(scipy.linalg.hadamard(padded)).double()[:size, :size]


@pytest.mark.parametrize("shape", [(3, 64), (2, 5, 24), (7,)])
def test_a_caller_of_fast_hadamard_transform(shape: tuple[int, ...]) -> None:
    x = values("normal", shape)
    y, sign, gradient = foreign(HADAMARD_CALLER, "fast_hadamard_transform")["run"](x)
    h = hadamard_matrix(shape[-1]) / math.sqrt(shape[-1])
    assert relative_error(y, (x * sign).double() @ h) < 1e-6
    weights = torch.arange(shape[-1])
    expected = (
        ((2 * y.double() * weights) @ h * x).flatten(0, -2).sum(dim=0)
        if x.dim() > 1
        else (2 * y.double() * weights) @ h * x
    )
    assert relative_error(gradient, expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 3, 12, 20, 28, 40, 64, 100, 128, 1000, 4096])
def test_hadamard_transform_against_scipy(size: int, dtype: torch.dtype) -> None:
    x = values("normal", (4, size)).to(dtype)
    y = nt.hadamard_transform(x, scale=size**-0.5)
    assert y.dtype == dtype
    assert y.shape == x.shape
    expected = x.double() @ hadamard_matrix(size) * size**-0.5
    sums = max(1, size.bit_length()) if dtype in (torch.float32, torch.float64) else 1
    assert relative_error(y, expected) < 2 * sums * ROUNDED_ONCE[dtype]
    assert_same_bits(nt.hadamard_transform(x), nt.hadamard_transform(x, 1.0))


@pytest.mark.parametrize("shape", [(16,), (2, 3, 16), (2, 1, 2, 2, 1, 2, 5)])
def test_hadamard_transform_takes_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    x = values("normal", shape)
    rows = nt.hadamard_transform(x.reshape(-1, shape[-1]))
    assert_same_bits(nt.hadamard_transform(x), rows.reshape(shape))


def test_a_caller_of_project_wgnc() -> None:
    """A latent of one sample and its gradient, in the shape of a model's latent."""
    target = noise(1, (1, 4, 64, 64))[0]
    run = foreign(WGNC_CALLER, "wgnc")["run"]
    start = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(99))
    result = run(start.clone(), lambda x: (x * target).sum() / 128, steps=10, lr=0.05)
    assert result.shape == start.shape
    assert float((result * target).sum()) > float((start * target).sum()) + 1000
    assert float(result.norm()) == pytest.approx(128, rel=1e-5)
    assert_same_bits(drop_in.project_wgnc(result.reshape(-1)), drop_in.project_wgnc(result).reshape(-1))


@pytest.mark.parametrize("shape", [(64,), (2, 32), (1, 4, 8, 8), (4, 2, 2, 2, 2, 2)])
def test_project_wgnc_takes_any_shape_as_one_sample(shape: tuple[int, ...]) -> None:
    y = values("1/k", shape)
    project_wgnc = drop_in.project_wgnc
    assert_same_bits(project_wgnc(y), torch.ops.noisetilt.project_wgnc(y.flatten()).view(shape))
    assert_same_bits(project_wgnc(y.transpose(0, -1)), project_wgnc(y.transpose(0, -1).contiguous()))
    assert_same_bits(project_wgnc(y, 8), project_wgnc(y, block_size=8))


@pytest.mark.parametrize("shape", [(2, 64), (3, 4, 8, 8), (2, 4, 2, 8, 8), (0, 4, 8, 8)])
def test_project_wgnc_batched_projects_each_sample_separately(shape: tuple[int, ...]) -> None:
    x = values("1/k", shape) if shape[0] else torch.empty(shape)
    result = drop_in.project_wgnc_batched(x, block_size=8)
    assert result.shape == shape
    for sample, projected in zip(x, result, strict=True):
        assert_same_bits(projected, drop_in.project_wgnc(sample, 8))
    assert_same_bits(
        drop_in.project_wgnc_batched(x.transpose(-1, -2).contiguous().transpose(-1, -2), 8), result
    )


def test_project_wgnc_batched_needs_a_batch() -> None:
    with pytest.raises(
        ValueError, match=r"project_wgnc_batched: x must be a batch \(B, C, H, W\), got \(64,\)"
    ):
        drop_in.project_wgnc_batched(torch.zeros(64))


def test_project_wgnc_of_nt_and_drop_in_differ_on_a_batch() -> None:
    """Rows are samples in `nt.project_wgnc`. In the drop-in the whole batch is one sample."""
    x = values("1/k", (4, 64))
    assert_same_bits(nt.project_wgnc(x), torch.stack([drop_in.project_wgnc(row) for row in x]))
    assert not torch.equal(nt.project_wgnc(x), drop_in.project_wgnc(x))
    assert drop_in.hadamard_transform is nt.hadamard_transform


# ---- FLUX's packed latents ----


def pack_as_diffusers_does(x: Tensor) -> Tensor:
    """FluxPipeline._pack_latents: view as 2x2 patches, permute, flatten."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, (h // 2) * (w // 2), c * 4)


def test_packing_by_hand() -> None:
    """Token (row, column) has the four values of its 2x2 patch, channel by channel."""
    x = torch.arange(2 * 4 * 6).view(1, 2, 4, 6)
    packed = nt.pack_latents(x)
    assert packed.shape == (1, 6, 8)
    for row in range(2):
        for column in range(3):
            patch = x[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert packed[0, 3 * row + column].tolist() == patch.flatten().tolist()


@pytest.mark.parametrize("shape", [(1, 16, 64, 64), (2, 16, 96, 170), (3, 1, 2, 2), (0, 16, 8, 8)])
def test_packing_is_that_of_diffusers_and_back(shape: tuple[int, ...]) -> None:
    x = values("normal", shape) if shape[0] else torch.empty(shape)
    packed = nt.pack_latents(x)
    assert_same_bits(packed, pack_as_diffusers_does(x))
    assert_same_bits(nt.unpack_latents(packed, *shape[2:]), x)


def test_packed_latents_are_whitened_after_unpacking() -> None:
    x = noise(1)
    tokens = nt.pack_latents(x)
    assert tokens.shape == (1, 1024, 64)
    assert_same_bits(nt.whiten(nt.unpack_latents(tokens, 64, 64)), nt.whiten(x))


@pytest.mark.parametrize("shape", [(16, 64, 64), (1, 16, 63, 64), (1, 16, 64, 63)])
def test_shapes_that_cannot_be_packed(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="pack_latents: x must be"):
        nt.pack_latents(torch.zeros(shape))


@pytest.mark.parametrize(
    ("shape", "height", "width"),
    [((1024, 64), 64, 64), ((1, 1024, 63), 64, 64), ((1, 1024, 64), 64, 63), ((1, 1000, 64), 64, 64)],
)
def test_shapes_that_cannot_be_unpacked(shape: tuple[int, ...], height: int, width: int) -> None:
    with pytest.raises(ValueError, match="unpack_latents: x must be"):
        nt.unpack_latents(torch.zeros(shape), height, width)
