"""Operators in PyTorch: schemas, fake tensors, compilation, gradients, dtypes, layouts, threads."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bits import assert_same_bits
from inputs import noise, tables, values
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.library import opcheck

import noisetilt_kernels as nt
from bench.inputs import FLUX
from noisetilt_kernels.drop_in import project_wgnc

ops = torch.ops.noisetilt


@dataclass(frozen=True)
class Case:
    """Call of an operator. Its first argument has shape (batch, *shape), the others are fixed."""

    op: Callable[..., Tensor]
    shape: tuple[int, ...]
    args: tuple[Any, ...] = ()
    kind: str = "projection"  # or "linear"
    complex: bool = False

    def input(self, batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
        if self.complex:
            # a clone, because the compiler rejects a complex view of real numbers
            return torch.view_as_complex(values("1/k", (batch, *self.shape, 2), dtype)).clone()
        return values("1/k", (batch, *self.shape), dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float64:
            return self.op(x, *(a.double() if isinstance(a, Tensor) else a for a in self.args))
        return self.op(x, *self.args)


TABLES = tables("typical", 64, 4)
CASES = {
    "whiten": Case(ops.whiten, (4, 16, 16)),
    "whiten flux": Case(ops.whiten, (2, 16, 32), ("flux", 1e-3)),
    "_whiten_config": Case(ops._whiten_config, (4, 8, 8), ([4], [4, 4, 2, 8], [0, 0, 0, 2, 2, 1], 1e-3)),
    "project_2os": Case(ops.project_2os, (256,), TABLES),
    "project_tile_stats": Case(ops.project_tile_stats, (4, 8, 8), ([4, 2], [4, 16])),
    "project_wgnc": Case(ops.project_wgnc, (256,)),
    "project_wgnc_blocks": Case(ops.project_wgnc_blocks, (128,), (8,), complex=True),
    "compact_fourier": Case(ops.compact_fourier, (30,), kind="linear"),
    "compact_fourier inverse": Case(ops.compact_fourier, (30,), (True,), kind="linear"),
    "butterfly": Case(ops.butterfly, (2, 4, 6), ([4, 3], 3), kind="linear"),
    "butterfly inverse": Case(ops.butterfly, (2, 4, 6), ([2, 6], 2, True), kind="linear"),
    "butterfly of no steps": Case(ops.butterfly, (2, 4, 6), ([4, 6], 0), kind="linear"),
    "hadamard_transform": Case(ops.hadamard_transform, (3, 16), (0.25,), kind="linear"),
    "hadamard_transform padded": Case(ops.hadamard_transform, (3, 11), kind="linear"),
}
LINEAR = [name for name, case in CASES.items() if case.kind == "linear"]
PROJECTIONS = [name for name, case in CASES.items() if case.kind == "projection"]
REAL = [name for name, case in CASES.items() if not case.complex]
ALL_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def test_every_public_operator_has_a_case() -> None:
    # not those that are registered now: the example of the documentation may have added one in this process
    schemas = (Path(nt.__file__).parent / "schemas.def").read_text()
    public = set(re.findall(r'^SCHEMA\("([a-z]\w*)\(', schemas, re.MULTILINE))
    assert {*public, "_whiten_config"} == {
        case.op._qualified_op_name.removeprefix("noisetilt::") for case in CASES.values()
    }


# ---- schema, fake tensors ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    args = tuple(a.to(dtype) if isinstance(a, Tensor) else a for a in case.args)
    opcheck(case.op.default, (case.input(dtype=dtype), *args))
    opcheck(case.op.default, (case.input(3, dtype)[1], *args))


@pytest.mark.parametrize("name", LINEAR)
def test_opcheck_with_gradient(name: str) -> None:
    case = CASES[name]
    opcheck(case.op.default, (case.input().requires_grad_(), *case.args))


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "expanded": lambda x: x[:1].expand_as(x),
    "every other": lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
}


@pytest.mark.parametrize("stride", STRIDED)
@pytest.mark.parametrize("name", CASES)
def test_layout_of_the_result(name: str, stride: str) -> None:
    """The result is contiguous for every layout of x, also as fake and meta tensor. x does not change."""
    x = STRIDED[stride](CASES[name].input(3))
    before = x.clone()
    result = CASES[name](x)
    assert_same_bits(result, CASES[name](x.contiguous()))
    assert_same_bits(x, before, "the input")
    assert result.data_ptr() != x.data_ptr()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = CASES[name](mode.from_tensor(x))
    meta = x.to("meta")
    if not any(isinstance(a, Tensor) for a in CASES[name].args):
        meta = CASES[name](meta)
        assert (meta.shape, meta.dtype, meta.device.type) == (result.shape, result.dtype, "meta")
    assert (fake.shape, fake.dtype, fake.device) == (result.shape, result.dtype, result.device)
    assert result.is_contiguous()
    assert fake.stride() == result.stride()


# ---- compilation ----


@pytest.mark.parametrize("name", CASES)
def test_compiles_into_one_graph(name: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: case(x * 2) + 1, fullgraph=True, dynamic=False, backend="aot_eager")
    x = case.input()
    assert_same_bits(compiled(x), case(x * 2) + 1)


@pytest.mark.parametrize("name", CASES)
def test_a_dynamic_batch_compiles_once(name: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x: case(x * 2) + 1, fullgraph=True, backend=counter)
    for batch in (2, 3, 5, 8):
        x = case.input(batch)
        torch._dynamo.mark_dynamic(x, 0)  # an error if the batch were specialised
        assert_same_bits(compiled(x), case(x * 2) + 1)
    assert counter.frame_count == 1


SIZES = [(6, 10), (3, 5), (7, 9), (5, 8), (9, 8), (11, 6), (13, 8), (16, 16), (17, 5), (8, 19)]
DYNAMIC: dict[str, Callable[[Tensor], Tensor]] = {
    "whiten": nt.whiten,
    "2os+tiles": lambda x: nt.project_tile_stats(x, (2, 2), (4,)),
    "butterfly": lambda x: nt.butterfly(x, (2, 2), 3),
    "wgnc": lambda x: nt.project_wgnc(x.flatten(1), 2).view_as(x),
    "fourier": lambda x: nt.compact_fourier(x.flatten(1)).view_as(x),
}


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("name", DYNAMIC)
def test_nine_more_sizes_do_not_compile_again(name: str, rank: int) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    step = DYNAMIC[name] if rank == 4 else lambda x: DYNAMIC[name](x[None])[0]
    compiled = torch.compile(lambda x: step(x * 2) + 1, fullgraph=True, dynamic=True, backend=counter)
    counts = []
    for height, width in SIZES:
        x = values("1/k", (2, 4, height, width) if rank == 4 else (4, height, width))
        assert_same_bits(compiled(x), step(x * 2) + 1, f"{height}x{width}")
        counts.append(counter.frame_count)
    assert counts == counts[:1] * 10  # the first may be 2: a number of the call becomes a constant


@pytest.mark.parametrize("name", DYNAMIC)
def test_any_size_can_be_exported(name: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return DYNAMIC[name](x * 2) + 1

    batch, height, width = (torch.export.Dim(side, min=2, max=64) for side in ("batch", "height", "width"))
    x = values("1/k", (3, 4, 6, 10))
    program = torch.export.export(Module(), (x,), dynamic_shapes=({0: batch, 2: height, 3: width},))
    for height, width in SIZES:
        x = values("1/k", (2, 4, height, width))
        assert_same_bits(program.module()(x), Module()(x), f"{height}x{width}")


def test_a_size_that_does_not_fit_is_an_error_when_a_dynamic_graph_runs() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: nt.whiten(x, "flux"), dynamic=True, backend="aot_eager")
    assert_same_bits(
        compiled(values("1/k", (2, 16, 17, 18))), nt.whiten(values("1/k", (2, 16, 17, 18)), "flux")
    )
    with pytest.raises(ValueError, match="tile 8x8 does not fit into the 6x20 plane"):
        compiled(values("1/k", (2, 16, 6, 20)))


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_compile(name: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: case(x).square().sum(), fullgraph=True, backend="aot_eager")
    x, y = case.input().requires_grad_(), case.input().requires_grad_()
    compiled(x).backward()
    case(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_the_functions_compile_too() -> None:
    torch._dynamo.reset()
    config = nt.WhiteningConfig((4,), ((4, 4),), ((nt.FULL, 0),))

    def step(x: Tensor) -> Tensor:
        x = nt.unpack_latents(nt.pack_latents(x), 16, 16)
        y = nt.hadamard_transform(nt.whiten(x, config, alpha=1e-3) + nt.whiten(x, "flux"), 0.125)
        y = nt.butterfly(nt.project_tile_stats(y, (4, 4), (4,)), (8, 8), 2)
        return nt.project_wgnc(nt.compact_fourier(y.flatten(1))) + project_wgnc(y).flatten(1)

    x = values("1/k", (2, 4, 16, 16))
    assert_same_bits(torch.compile(step, fullgraph=True, backend="aot_eager")(x), step(x))


@pytest.mark.slow
def test_inductor() -> None:
    """Inductor may reorder and fuse the operations around an operator."""
    torch._dynamo.reset()
    lower, upper = TABLES

    def step(x: Tensor) -> Tensor:
        y = ops.project_2os((x.t() * 2).t(), lower, upper)
        return ops.butterfly(y, [1, 256], 8) + 1

    x = values("1/k", (256, 3)).t()
    assert_same_bits(torch.compile(step, fullgraph=True)(x), step(x))


# ---- gradients ----


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_of_linear_operators(name: str) -> None:
    case = CASES[name]
    x = case.input(2, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(case, (x,))
    assert torch.autograd.gradgradcheck(case, (x,))


@pytest.mark.parametrize("name", LINEAR)
def test_forward_mode_derivatives_of_linear_operators(name: str) -> None:
    """The derivative along a tangent is the operator itself: in bits, and against finite differences."""
    case = CASES[name]
    x, tangent = case.input(2, torch.float64), case.input(2, torch.float64).flip(-1)
    with forward_ad.dual_level():
        result = forward_ad.unpack_dual(case(forward_ad.make_dual(x, tangent)))
        assert_same_bits(result.primal, case(x))
        assert_same_bits(result.tangent, case(tangent))
        assert forward_ad.unpack_dual(case(x)).tangent is None
        detached = forward_ad.make_dual(x, tangent).detach()
        assert forward_ad.unpack_dual(case(detached)).tangent is None
    assert_same_bits(torch.func.jvp(case, (x,), (tangent,))[1], case(tangent))
    assert torch.autograd.gradcheck(case, (x.requires_grad_(),), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(case, (x,), check_fwd_over_rev=True)


@pytest.mark.parametrize("name", LINEAR)
def test_forward_mode_jacobian(name: str) -> None:
    case = CASES[name]
    x = case.input(1, torch.float64)
    jacobian = torch.func.jacfwd(case)(x).reshape(x.numel(), x.numel())
    basis = torch.eye(x.numel(), dtype=torch.float64).view(-1, *x.shape[1:])
    assert_same_bits(jacobian, case(basis).reshape(x.numel(), x.numel()).t())


@pytest.mark.parametrize("name", LINEAR)
def test_forward_mode_compiles(name: str) -> None:
    case = CASES[name]
    torch._dynamo.reset()
    x, tangent = case.input(), case.input().flip(-1)
    compiled = torch.compile(
        lambda x, tangent: torch.func.jvp(case, (x,), (tangent,)), fullgraph=True, backend="aot_eager"
    )
    for result, expected in zip(compiled(x, tangent), (case(x), case(tangent)), strict=True):
        assert_same_bits(result, expected)


@pytest.mark.parametrize("in_dim", [0, -1])
@pytest.mark.parametrize("name", CASES)
def test_vmap(name: str, in_dim: int, capfd: pytest.CaptureFixture[str]) -> None:
    """vmap over pairs of samples, and over single samples, in one call of the operator."""
    case = CASES[name]
    x = case.input(4)
    pairs = x.unflatten(0, (2, 2)).movedim(0, in_dim)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same_bits(torch.func.vmap(case, in_dims=in_dim)(pairs).flatten(0, 1), case(x))
        assert_same_bits(torch.func.vmap(case, in_dims=in_dim)(x.movedim(0, in_dim)), case(x))
        assert_same_bits(
            torch.func.vmap(torch.func.vmap(case))(x.unflatten(0, (2, 2))).flatten(0, 1), case(x)
        )
    assert "performance drop" not in capfd.readouterr().err  # PyTorch warns on the terminal, too


def test_vmap_over_tables_and_wrong_shapes() -> None:
    x = torch.randn(3, 64)
    lower = torch.linspace(-2, 1, 64).reshape(16, 4) - torch.arange(3.0)[:, None, None]
    project = torch.ops.noisetilt.project_2os
    expected = torch.stack([project(x[i], lower[i], lower[i] + 3) for i in range(3)])
    assert_same_bits(torch.func.vmap(project)(x, lower, lower + 3), expected)
    assert_same_bits(
        torch.func.vmap(project, in_dims=(None, 0, 0))(x[0], lower, lower + 3),
        torch.stack([project(x[0], lower[i], lower[i] + 3) for i in range(3)]),
    )
    with pytest.raises(ValueError, match=r"x must be \(N,\)"):
        torch.func.vmap(torch.ops.noisetilt.whiten)(x[:, 0])


@pytest.mark.parametrize("name", LINEAR)
def test_gradients_of_torch_func(name: str) -> None:
    case = CASES[name]
    x = case.input(2, torch.float64)

    def energy(x: Tensor) -> Tensor:
        return case(x).pow(3).sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(energy(leaf), leaf)
    assert_same_bits(torch.func.grad(energy)(x), expected)
    assert_same_bits(torch.func.vmap(torch.func.grad(energy))(x), expected)
    size = x[0].numel()
    one = x[:1]
    backward = torch.func.jacrev(case)(one).reshape(size, size)
    torch.testing.assert_close(backward, torch.func.jacfwd(case)(one).reshape(size, size))
    # the energy is a sum of cubes of J x, so its second derivative is J^T diag(6 J x) J
    hessian = torch.func.hessian(energy)(one).reshape(size, size)
    torch.testing.assert_close(hessian, backward.T @ torch.diag(6 * case(one).flatten()) @ backward)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_gradient_of_torch_func_through_a_projection_is_an_error(name: str) -> None:
    case = CASES[name]
    x = case.input()
    real = torch.view_as_real if x.is_complex() else (lambda x: x)
    with pytest.raises(NotImplementedError, match="has no gradient: it is a projection"):
        torch.func.grad(lambda x: real(case(x)).sum())(x)


@pytest.mark.parametrize("name", LINEAR)
def test_forward_mode_twice(name: str) -> None:
    """A second derivative: of the energy of the result, along the tangent twice."""
    case = CASES[name]
    x, tangent = case.input(2, torch.float64), case.input(2, torch.float64).flip(-1)

    def slope(x: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: case(x).square().sum(), (x,), (tangent,))[1]

    second = torch.func.jvp(slope, (x,), (tangent,))[1]
    torch.testing.assert_close(second, 2 * case(tangent).square().sum())


@pytest.mark.parametrize("name", PROJECTIONS)
def test_forward_mode_through_a_projection_is_an_error(name: str) -> None:
    case = CASES[name]
    x = case.input()
    op = "whiten" if name == "_whiten_config" else name.split()[0]
    message = rf"^{op} has no gradient: it is a projection. Pass x.detach\(\)\.$"
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        for grad in (torch.no_grad(), torch.enable_grad()):
            with grad, pytest.raises(NotImplementedError, match=message):
                case(dual)
        assert_same_bits(case(dual.detach()), case(x))
    with pytest.raises(NotImplementedError, match=message):
        torch.func.jvp(case, (x,), (torch.ones_like(x),))


def test_forward_mode_through_a_table_is_an_error() -> None:
    lower, upper = TABLES
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(lower, torch.ones_like(lower))
        with pytest.raises(NotImplementedError, match=r"^project_2os has no gradient"):
            ops.project_2os(CASES["project_2os"].input(), dual, upper)


@pytest.mark.parametrize("name", LINEAR)
def test_forward_mode_on_other_devices(name: str) -> None:
    x = CASES[name].input().to("meta")
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(CASES[name](forward_ad.make_dual(x, torch.ones_like(x)))).tangent
        assert tangent is not None and tangent.shape == x.shape


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("name", LINEAR)
def test_gradients_have_the_dtype_of_the_input(name: str, dtype: torch.dtype) -> None:
    x = CASES[name].input().to(dtype).requires_grad_()
    CASES[name](x).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("name", PROJECTIONS)
def test_backward_through_a_projection_is_an_error(name: str) -> None:
    case = CASES[name]
    x = case.input().requires_grad_()
    result = case(x)
    assert result.requires_grad
    op = "whiten" if name == "_whiten_config" else name.split()[0]
    with pytest.raises(NotImplementedError, match=rf"^{op} has no gradient: it is a projection.*detach"):
        result.abs().sum().backward()
    with torch.no_grad():
        assert not case(x).requires_grad
    assert_same_bits(case(x.detach()), result)


@pytest.mark.parametrize("name", CASES)
def test_inference_mode(name: str) -> None:
    case = CASES[name]
    with torch.inference_mode():
        result = case(case.input())
    assert result.is_inference()
    assert_same_bits(result.clone(), case(case.input()))


# ---- dtypes and shapes ----


@pytest.mark.parametrize("dtype", ALL_DTYPES)
@pytest.mark.parametrize("name", REAL)
def test_dtype_in_is_dtype_out(name: str, dtype: torch.dtype) -> None:
    x = CASES[name].input().to(dtype)
    result = CASES[name](x)
    assert result.dtype == dtype
    assert bool(result.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_dtype_in_is_dtype_out(dtype: torch.dtype) -> None:
    x = CASES["project_wgnc_blocks"].input(dtype=dtype.to_real())
    assert ops.project_wgnc_blocks(x).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_lazily_conjugated_and_negated_input(dtype: torch.dtype) -> None:
    y = CASES["project_wgnc_blocks"].input(dtype=dtype.to_real())
    assert y.conj().is_conj()
    assert_same_bits(ops.project_wgnc_blocks(y.conj()), ops.project_wgnc_blocks(y).conj())
    negated = y.conj().imag  # a view with the negative bit
    assert negated.is_neg()
    for op in (ops.compact_fourier, ops.project_wgnc, ops.hadamard_transform):
        assert_same_bits(op(negated), op(negated.resolve_neg().contiguous()))


def test_samples_with_an_odd_storage_offset() -> None:
    x = torch.randn(2 * 64 + 1)[1:].view(2, 64)
    assert x.storage_offset() == 1
    for op in (ops.compact_fourier, lambda x: ops.compact_fourier(x, True), ops.project_wgnc, ops.whiten):
        assert_same_bits(op(x), op(x.clone()))


@pytest.mark.parametrize("name", CASES)
def test_empty_batch(name: str) -> None:
    case = CASES[name]
    result = case(case.input()[:0])
    assert result.shape == (0, *case.shape)
    assert result.dtype == case.input().dtype


@pytest.mark.parametrize("shape", [(64,), (3, 64), (4, 4, 4), (3, 4, 4, 4), (3, 2, 2, 4, 4)])
def test_every_rank(shape: tuple[int, ...]) -> None:
    """(N,) and (C,H,W) are one sample; frames are channels."""
    x = values("1/k", shape)
    batched = x if len(shape) in (2, 4, 5) else x[None]
    for op in (
        ops.whiten,
        lambda x: ops.butterfly(x, [1, 4], 2),
        lambda x: ops.project_tile_stats(x, [1, 4], [4]),
    ):
        result = op(x)
        assert result.shape == shape
        for k in range(len(batched)):
            single = batched[k].flatten(0, 1) if len(shape) == 5 else batched[k]
            assert_same_bits(result.view_as(batched)[k], op(single).view_as(batched[k]))


def test_keywords_and_defaults() -> None:
    x = values("1/k", (2, 256))
    assert_same_bits(ops.whiten(x=x, preset="auto", alpha=1e-3), ops.whiten(x))
    assert_same_bits(ops.project_wgnc(x, block_size=16), ops.project_wgnc(x))
    assert_same_bits(ops.compact_fourier(x, inverse=False), ops.compact_fourier(x))
    assert_same_bits(ops.hadamard_transform(x, scale=1.0), ops.hadamard_transform(x))


def test_a_negative_zero_is_not_taken_for_zero() -> None:
    """Calls are kept for later ones: each must have its own result, in either order."""
    x = torch.ones(3, 16)
    for scale in (0.0, -0.0, 0.0, -0.0):
        for result in (nt.hadamard_transform(x, scale), ops.hadamard_transform(x, scale)):
            assert_same_bits(result[:, 0], torch.full((3,), scale))  # 16 * scale


# ---- shapes that are probably a mistake ----

TOKENS = r"whiten: x \(.*\) is taken as one sample \(C,H,W\), but looks like packed latents .*; unpack them"
VIDEO = r"whiten: x \(.*\) is taken as \d+ samples \(C,H,W\), but the preset 'wan' is for videos .*x\[None\]"


@pytest.mark.parametrize("config", ["auto", "flux", nt.WhiteningConfig((4,), ((4, 4),), ())], ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1024, 64), (2, 256, 64), (8, 512, 64), (1, 256, 128), (3, 1024, 128), (4, 1024, 128)]
)
def test_packed_latents_are_a_warning(shape: tuple[int, ...], config: Any) -> None:
    """Tokens of FLUX.1 and FLUX.2: (B, H/2 * W/2, 4C)."""
    x = torch.ones(shape, device="meta")
    with pytest.warns(UserWarning, match=TOKENS) as caught:
        nt.whiten(x, config)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "shape",
    [
        *((16, 64, 64), (16, 128, 64), (4, 96, 64), (32, 256, 128), (1, 64, 64), (3, 64, 128)),
        *((1, 1, 1024, 64), (2, 16, 64, 64), (1024, 64), (1, 16, 21, 64, 64)),
    ],
)
def test_latents_are_no_warning(shape: tuple[int, ...]) -> None:
    nt.whiten(torch.ones(shape, device="meta"))


@pytest.mark.parametrize("shape", [(16, 21, 60, 104), (16, 5, 60, 104), (48, 21, 60, 104), (16, 1, 60, 104)])
def test_a_video_without_a_batch_is_a_warning(shape: tuple[int, ...]) -> None:
    x = torch.ones(shape, device="meta")
    with pytest.warns(UserWarning, match=VIDEO) as caught:
        nt.whiten(x, "wan")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nt.whiten(x[None], "wan")
        nt.whiten(x[:2], "wan")
        nt.whiten(x, nt.preset("wan"))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 1, 1024, 64), TOKENS), ((2, 16, 4, 60, 104), VIDEO), ((16, 16, 4, 60, 104), VIDEO)],
)
def test_vmap_warns_of_the_shape_of_a_sample(shape: tuple[int, ...], message: str) -> None:
    config = "wan" if message == VIDEO else "auto"
    with pytest.warns(UserWarning, match=message) as caught:
        torch.func.vmap(lambda x: nt.whiten(x, config))(torch.ones(shape, device="meta"))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert str(shape[1:]) in str(caught[0].message)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(16, 4, 60, 104), (2, 8, 4, 60, 104), (4, 4, 2, 60, 104)])
def test_vmap_does_not_warn_of_the_shape_of_the_batch(shape: tuple[int, ...]) -> None:
    """16 samples at once are no video of 16 channels."""
    torch.func.vmap(lambda x: nt.whiten(x, "wan"))(torch.ones(shape, device="meta"))


# ---- threads ----

THREADED: dict[str, Callable[[Tensor], Tensor]] = {
    "project_2os": lambda x: ops.project_2os(
        x.flatten(1), *(t.to(x.dtype) for t in nt.confidence_table(4096, 16))
    ),
    "project_2os, unsorted": lambda x: ops.project_2os(x.flatten(1), *tables("unsorted", 16_384, 4, x.dtype)),
    "project_2os, odd chunks": lambda x: ops.project_2os(
        x.flatten(1)[:, :65_535], *tables("monotone", 21_845, 3, x.dtype)
    ),
    "project_tile_stats": lambda x: ops.project_tile_stats(x, [8, 8], [4, 16]),
    "butterfly": lambda x: ops.butterfly(x, [64, 64], 12),
    "butterfly of small tiles": lambda x: ops.butterfly(x, [8, 8], 6),
    "hadamard_transform": lambda x: ops.hadamard_transform(x),
    "project_wgnc_blocks": lambda x: ops.project_wgnc_blocks(torch.view_as_complex(x.view(len(x), -1, 2))),
    "whiten": lambda x: ops.whiten(x),
    "project_wgnc": lambda x: ops.project_wgnc(x.flatten(1)),
    "compact_fourier": lambda x: ops.compact_fourier(x.flatten(1)),
    "compact_fourier inverse": lambda x: ops.compact_fourier(x.flatten(1), True),
}


@pytest.mark.usefixtures("thread_count")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("name", THREADED)
def test_the_number_of_threads_changes_no_bit(name: str, batch: int, dtype: torch.dtype) -> None:
    x = torch.cat(
        [
            values("1/k", (1, *FLUX), dtype),
            noise(batch - 1, dtype=dtype) if batch > 1 else noise(1)[:0].to(dtype),
        ]
    )
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results.append(THREADED[name](x))
    for threads, result in zip((2, 7), results[1:], strict=True):
        assert_same_bits(result, results[0], f"{threads} threads")


@pytest.mark.usefixtures("thread_count")
def test_the_number_of_threads_hardly_changes_long_ffts() -> None:
    """Torch's FFT of a sample above `MOST_WITHOUT_OPENMP` rounds differently on several threads."""
    x = values("normal", (1, 16, 128, 144))
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results.append(ops.whiten(x))
    for result in results[1:]:
        assert (
            float(torch.nn.functional.cosine_similarity(result.flatten(1), results[0].flatten(1)).min())
            > 0.999999
        )
