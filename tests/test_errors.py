"""Every bad argument raises an error that names operator and argument. Later calls still work."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bits import assert_same_bits
from inputs import tables, values
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import noisetilt_kernels as nt
from noisetilt_kernels.drop_in import project_wgnc, project_wgnc_batched

ops = torch.ops.noisetilt
LOWER, UPPER = tables("typical", 16, 4)
ARRAY = np.zeros((300, 64))


def real(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def spectrum(*shape: int, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.ones(shape, dtype=dtype)


# A correct call of every operator. Each mistake replaces one or two of its arguments.
RIGHT: dict[str, dict[str, Any]] = {
    "whiten": {"x": real(2, 4, 8, 8), "preset": "auto", "alpha": 1e-3},
    "_whiten_config": {
        "x": real(2, 4, 8, 8),
        "chunk_sizes": [4],
        "tile_sizes": [4, 4],
        "mixing": [0, 0, 0],
        "alpha": 1e-3,
    },
    "project_2os": {"x": real(2, 64), "lower": LOWER, "upper": UPPER},
    "project_tile_stats": {"x": real(2, 4, 8, 8), "tile": [4, 2], "chunk_sizes": [4, 16], "alpha": 1e-3},
    "project_wgnc": {"x": real(2, 64), "block_size": 16},
    "project_wgnc_blocks": {"y": spectrum(2, 32), "block_size": 16},
    "compact_fourier": {"x": real(2, 64), "inverse": False},
    "butterfly": {"x": real(2, 4, 8, 8), "tile": [4, 2], "steps": 3, "inverse": False},
    "hadamard_transform": {"x": real(2, 64), "scale": 0.5},
}

Mistake = tuple[str, dict[str, Any], type[Exception], str]


def mistakes() -> dict[str, Mistake]:
    """Operator, replaced arguments, error, and a part of its message that follows the operator's name."""
    found: dict[str, Mistake] = {}

    def add(op: str, what: str, error: type[Exception], message: str, **replaced: Any) -> None:
        found[f"{op}: {what}"] = op, replaced, error, message

    samples = ("whiten", "_whiten_config", "project_tile_stats", "butterfly")
    flat = ("project_2os", "project_wgnc", "compact_fourier")
    for op in (*samples, *flat, "hadamard_transform"):
        shape = RIGHT[op]["x"].shape
        for dtype in (torch.int32, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn):
            message = "x must be one of float16, bfloat16, float32, float64, got "
            message += str(dtype).removeprefix("torch.")
            add(op, str(dtype), TypeError, message, x=torch.zeros(shape).to(dtype))
    for dtype in (torch.float32, torch.float16, torch.int64):
        add(
            "project_wgnc_blocks",
            str(dtype),
            TypeError,
            "y must be one of complex64",
            y=real(2, 32).to(dtype),
        )

    for op in samples:
        add(op, "no dimension", ValueError, "x must be (N,), (B,N), (C,H,W)", x=real())
        add(op, "six dimensions", ValueError, "got (1, 1, 4, 4, 8, 8)", x=real(1, 1, 4, 4, 8, 8))
        for shape in ((0,), (2, 0), (0, 8, 8), (2, 4, 0, 8), (2, 4, 2, 8, 0)):
            add(op, f"empty {shape}", ValueError, f"x has empty samples: {shape}", x=real(*shape))
    for op in flat:
        add(op, "no dimension", ValueError, "x must be (N,) or (B,N), got ()", x=real())
        add(op, "a latent", ValueError, "got (2, 4, 8, 8); use flatten(1) for latents", x=real(2, 4, 8, 8))
        add(op, "empty", ValueError, "x has empty samples: (2, 0)", x=real(2, 0))
    add(
        "project_wgnc_blocks",
        "three dimensions",
        ValueError,
        "y must be (N,) or (B,N), got (2, 2, 16)",
        y=spectrum(2, 2, 16),
    )
    add("project_wgnc_blocks", "empty", ValueError, "y has empty samples: (0,)", y=spectrum(0))
    add(
        "hadamard_transform",
        "no dimension",
        ValueError,
        "the last dimension of x is missing or empty: ()",
        x=real(),
    )
    add(
        "hadamard_transform",
        "empty",
        ValueError,
        "the last dimension of x is missing or empty: (2, 0)",
        x=real(2, 0),
    )

    for op in ("whiten", "_whiten_config", "project_tile_stats"):
        for alpha in (0.0, 1.0, -1e-4, 1.5, 1e-101, 0.9999999, float("nan"), float("inf")):
            add(
                op,
                f"alpha {alpha}",
                ValueError,
                f"alpha must be in [1e-100, 0.999999], got {alpha}",
                alpha=alpha,
            )

    for preset in ("sdxl", "", "FLUX"):
        add(
            "whiten",
            f"preset {preset!r}",
            ValueError,
            f"unknown preset {preset!r}; valid: 'flux', 'wan', 'auto'",
            preset=preset,
        )
    add(
        "whiten",
        "odd size",
        ValueError,
        "needs an even number of values, got a 1x3x5 sample",
        x=real(1, 3, 5),
        preset="flux",
    )
    add(
        "whiten",
        "chunks",
        ValueError,
        "chunk size 4 does not divide the 6 values of a 1x2x3 sample; chunk sizes that do: 1, 2, 3, 6",
        x=real(1, 2, 3),
        preset="flux",
    )
    add(
        "whiten",
        "tiles",
        ValueError,
        "tile 8x8 does not fit into the 6x8 plane of a 16x6x8 sample; a tile may be at most 6x8",
        x=real(16, 6, 8),
        preset="flux",
    )
    add(
        "whiten",
        "auto without chunks",
        ValueError,
        "'auto' needs a number of values divisible by 4 or 16, got 6",
        x=real(6),
    )

    add(
        "_whiten_config",
        "no chunk size",
        ValueError,
        "chunk_sizes must be positive and not empty, got ()",
        chunk_sizes=[],
    )
    add("_whiten_config", "chunk size 0", ValueError, "chunk_sizes must be positive", chunk_sizes=[4, 0])
    add(
        "_whiten_config",
        "chunk size 3",
        ValueError,
        "chunk size 3 does not divide the 256 values",
        chunk_sizes=[3],
    )
    add(
        "_whiten_config",
        "half a tile",
        ValueError,
        "tile_sizes lists pairs th, tw and mixing triples",
        tile_sizes=[4],
    )
    add(
        "_whiten_config",
        "half a domain",
        ValueError,
        "tile_sizes lists pairs th, tw and mixing triples",
        mixing=[4, 4],
    )
    add(
        "_whiten_config", "tile 1x1", ValueError, "a tile needs at least 2 values, got 1x1", tile_sizes=[1, 1]
    )
    add("_whiten_config", "tile 9x4", ValueError, "tile 9x4 does not fit into the 8x8", tile_sizes=[9, 4])
    add(
        "_whiten_config",
        "mixing 1x1",
        ValueError,
        "a mixing tile needs an even number of values, got 1x1",
        mixing=[1, 1, 2],
    )
    add("_whiten_config", "mixing 2x9", ValueError, "tile 2x9 does not fit into the 8x8", mixing=[2, 9, 2])
    add(
        "_whiten_config",
        "repeats",
        ValueError,
        "mixing repeats must not be negative, got -1",
        mixing=[0, 0, -1],
    )
    add(
        "_whiten_config",
        "2^62 repeats",
        ValueError,
        f"mixing repeats must be at most 1024, got {2**62}",
        mixing=[0, 0, 2**62],
    )
    add(
        "_whiten_config",
        "plane of one value",
        ValueError,
        "tile 1x1 must hold an even number of values",
        x=real(4, 1, 1),
        tile_sizes=[],
    )

    def tables_of(*shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        return {"lower": torch.zeros(shape, dtype=dtype), "upper": torch.zeros(shape, dtype=dtype)}

    add(
        "project_2os",
        "tables of another size",
        ValueError,
        "a table of 8x4 bounds does not fit samples of 64 values; M*D must be 64",
        **tables_of(8, 4),
    )
    add("project_2os", "empty tables", ValueError, "a table of 0x4 bounds does not fit", **tables_of(0, 4))
    add("project_2os", "flat tables", ValueError, "lower must be (M, D), got (64,)", **tables_of(64))
    add(
        "project_2os",
        "two shapes",
        ValueError,
        "lower (16, 4) and upper (4, 16) must have one shape",
        upper=torch.zeros(4, 16),
    )
    add(
        "project_2os",
        "float64 tables",
        TypeError,
        "lower (for float32 x) must be one of float32, got float64",
        **tables_of(16, 4, dtype=torch.float64),
    )
    add(
        "project_2os",
        "float32 tables",
        TypeError,
        "lower (for float64 x) must be one of float64, got float32",
        x=real(64).double(),
    )
    add(
        "project_2os",
        "float16 tables",
        TypeError,
        "upper (for float16 x) must be one of float32, got float16",
        x=real(64).half(),
        upper=UPPER.half(),
    )

    for op in ("project_tile_stats", "butterfly"):
        add(op, "tile of one number", ValueError, "tile must be (th, tw), got [4]", tile=[4])
        add(op, "tile of three", ValueError, "tile must be (th, tw), got [4, 4, 4]", tile=[4, 4, 4])
        for tile in ([9, 2], [4, 16], [0, 2], [-4, 2]):
            message = f"tile {tile[0]}x{tile[1]} does not fit into the 8x8 plane of a 4x8x8 sample; "
            message += "a tile may be at most 8x8"
            add(op, f"tile {tile}", ValueError, message, tile=tile)
        add(
            op,
            "tile of a flat sample",
            ValueError,
            "tile 2x4 does not fit into the 1x64 plane of a flat sample of 64 values",
            x=real(2, 64),
            tile=[2, 4],
        )
    add("project_tile_stats", "tile 1x1", ValueError, "tile 1x1 must hold at least 2 values", tile=[1, 1])
    add(
        "project_tile_stats",
        "no chunk size",
        ValueError,
        "chunk_sizes must be positive and not empty, got []",
        chunk_sizes=[],
    )
    add(
        "project_tile_stats",
        "chunk size -4",
        ValueError,
        "chunk_sizes must be positive and not empty, got [-4]",
        chunk_sizes=[-4],
    )
    add(
        "butterfly",
        "odd tile",
        ValueError,
        "tile 3x3 must hold an even number of values",
        x=real(1, 3, 3),
        tile=[3, 3],
    )
    add("butterfly", "tile 1x1", ValueError, "tile 1x1 must hold an even number of values", tile=[1, 1])
    add("butterfly", "steps", ValueError, "steps must not be negative, got -1", steps=-1)
    for steps in (1025, 2**62):
        add(
            "butterfly", f"{steps} steps", ValueError, f"steps must be at most 1024, got {steps}", steps=steps
        )

    add("project_wgnc", "odd size", ValueError, "needs an even number of values, got 33", x=real(33))
    add("compact_fourier", "odd size", ValueError, "needs an even number of values, got 33", x=real(33))
    add(
        "compact_fourier",
        "odd size back",
        ValueError,
        "needs an even number of values, got 33",
        x=real(33),
        inverse=True,
    )
    divide = "block_size must be at least 2 and divide the 32 complex coefficients of a sample, got {}; "
    divide += "block sizes that do: 2, 4, 8, 16, 32"
    for block_size in (-16, 0, 1, 3, 64):
        add(
            "project_wgnc",
            f"block size {block_size}",
            ValueError,
            divide.format(block_size),
            block_size=block_size,
        )
        add(
            "project_wgnc_blocks",
            f"block size {block_size}",
            ValueError,
            divide.format(block_size),
            block_size=block_size,
        )
    add(
        "project_wgnc",
        "indivisible",
        ValueError,
        "divide the 5 complex coefficients",
        x=real(10),
        block_size=2,
    )
    return found


MISTAKES = mistakes()


def call(
    op: str, replaced: dict[str, Any], convert: Callable[[Any], Any] = lambda argument: argument
) -> Tensor:
    arguments = {name: convert(argument) for name, argument in {**RIGHT[op], **replaced}.items()}
    return getattr(ops, op)(**arguments)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake(name: str) -> None:
    op, replaced, error, message = MISTAKES[name]
    with pytest.raises(error, match=re.escape(message)) as caught:
        call(op, replaced)
    # nt.whiten calls _whiten_config, so its messages name the public function and class
    names = ("whiten", "WhiteningConfig") if op == "_whiten_config" else (f"{op}:",)
    assert str(caught.value).startswith(names)
    # the next call of the operator works
    assert bool(call(op, {}).isfinite().all())


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_with_fake_tensors(name: str) -> None:
    """torch.compile and export see the same error, before anything runs."""
    op, replaced, error, message = MISTAKES[name]
    with FakeTensorMode() as mode, pytest.raises(error, match=re.escape(message)):
        call(
            op,
            replaced,
            lambda argument: mode.from_tensor(argument) if isinstance(argument, Tensor) else argument,
        )


@pytest.mark.parametrize(
    "name",
    ["whiten: preset 'sdxl'", "project_2os: two shapes", "butterfly: odd tile", "project_wgnc: block size 3"],
)
def test_mistake_under_compile(name: str) -> None:
    op, replaced, _, message = MISTAKES[name]
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda arguments: getattr(ops, op)(**arguments), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match=re.escape(message)):
        compiled({**RIGHT[op], **replaced})
    assert_same_bits(compiled(RIGHT[op]), call(op, {}))


# ---- values of tables, devices ----


def swap(table: Tensor, index: tuple[int, int], value: float) -> Tensor:
    table = table.clone()
    table[index] = value
    return table


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index", [(0, 0), (7, 2), (15, 3)])
def test_tables_with_nan_or_crossed_entries(index: tuple[int, int], dtype: torch.dtype) -> None:
    lower, upper = LOWER.to(dtype), UPPER.to(dtype)
    bad = [
        (swap(lower, index, torch.nan), upper, "NaN"),
        (lower, swap(upper, index, torch.nan), "NaN"),
        (swap(lower, index, 99.0), upper, "exceed"),
        (lower, swap(upper, index, -torch.inf), "exceed"),
    ]
    x = values("normal", (2, 64), dtype)
    for tables_of in (lambda table: table, lambda table: table.t().contiguous().t()):  # rows or columns first
        for a, b, message in bad:
            with pytest.raises(ValueError, match=f"project_2os: .*{message}"):
                ops.project_2os(x, tables_of(a), tables_of(b))
            assert bool(ops.project_2os(x, lower, upper).isfinite().all())


@pytest.mark.parametrize("name", ["lower", "upper"])
def test_tables_on_another_device(name: str) -> None:
    arguments = {**RIGHT["project_2os"], name: RIGHT["project_2os"][name].to("meta")}
    with pytest.raises(ValueError, match=f"project_2os: {name} is on meta, x on cpu"):
        ops.project_2os(**arguments)
    assert bool(call("project_2os", {}).isfinite().all())


def test_samples_on_another_device() -> None:
    with pytest.raises(ValueError, match="project_2os: lower is on cpu, x on meta"):
        ops.project_2os(real(2, 64).to("meta"), LOWER, UPPER)


# ---- arguments of the wrong type ----

# A wrong value of every type in a schema, and the words of the message
WRONG: dict[str, list[Any]] = {
    "Tensor": [ARRAY, ARRAY.tolist(), None, 5, "x"],
    "List[int]": [8, "88", (8, 8.0), None, torch.zeros(2)],
    "int": [6.5, "16", 2**70, None],
    "float": ["small", 2j, torch.ones(3), None],
    "bool": ["yes"],
    "str": [],  # `whiten` checks it before PyTorch does
}
WANTED = {
    "Tensor": "a torch.Tensor",
    "List[int]": "a sequence of integers",
    "int": "an integer of at most 64 bits",
    "float": "a number",
    "bool": "True or False",
}


@pytest.mark.parametrize("op", sorted(set(RIGHT) - {"_whiten_config"}))
def test_an_argument_of_the_wrong_type_is_one_sentence(op: str) -> None:
    """The message names function and argument, and prints no array."""
    function = getattr(nt, op)
    names = {"preset": "config"} if op == "whiten" else {}
    arguments = {names.get(name, name): value for name, value in RIGHT[op].items()}
    for argument in getattr(ops, op).default._schema.arguments:
        for value in WRONG[str(argument.type)]:
            if op == "whiten" and argument.name == "alpha" and value is None:
                continue  # stands for the default
            with pytest.raises(TypeError) as caught:
                function(**{**arguments, argument.name: value})
            message = f"{op}: {argument.name} must be {WANTED[str(argument.type)]}, got "
            assert str(caught.value).startswith(message)
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 200
    assert bool(function(**arguments).isfinite().all())


def jagged(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor(list(x), layout=torch.jagged)


# The values of x in another layout
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse": Tensor.to_sparse,
    "sparse rows": lambda x: x.flatten(1).to_sparse_csr(),
    "sparse blocks": lambda x: x.flatten(1).to_sparse_bsr((2, 2)),
    "mkldnn": Tensor.to_mkldnn,
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": jagged,
}


@pytest.mark.filterwarnings("ignore:.*(Sparse|nested).*")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", RIGHT)
def test_only_dense_tensors_are_taken(op: str, layout: str) -> None:
    """The error is the same after a dense call of the same shape and dtype."""
    call(op, {})
    first = next(iter(RIGHT[op]))
    x = RIGHT[op][first]
    if x.is_complex() and layout == "mkldnn":
        return  # MKL-DNN has no complex numbers
    name = "whiten" if op == "_whiten_config" else op
    for requires_grad in (False, True):
        other = LAYOUTS[layout](x.detach())
        if requires_grad and layout != "mkldnn":
            other.requires_grad_()
        with pytest.raises(TypeError, match=f"^{name}: tensors must be dense, got a sparse, nested or"):
            call(op, {first: other})


@pytest.mark.parametrize("name", ["lower", "upper"])
def test_a_sparse_table_is_an_error(name: str) -> None:
    with pytest.raises(TypeError, match=r"^project_2os: tensors must be dense"):
        call("project_2os", {name: RIGHT["project_2os"][name].to_sparse()})


# ---- sizes that the kernels cannot count ----


@pytest.mark.parametrize(
    "function",
    [
        lambda x: nt.whiten(x[: 2**33], nt.WhiteningConfig((1,), (), ())),
        lambda x: nt.project_tile_stats(x[: 2**34], (1, 2), (1,)),
        lambda x: nt.project_2os(x[: 2**33], *[x[: 2**33, None]] * 2),
        lambda x: nt.project_2os(x[: 2**31], *[x[None, : 2**31]] * 2),
    ],
)
def test_more_chunks_than_the_kernels_count(function: Callable[[Tensor], Tensor]) -> None:
    """Meta tensors have no memory. Twice as many values as the largest sample are refused."""
    with pytest.raises(
        ValueError, match=r"\d+ chunks of \d+ values are too many; the kernels take 4294967296"
    ):
        function(torch.empty(2**34, device="meta"))


def test_as_many_chunks_as_the_kernels_count() -> None:
    x = torch.empty(2**32, device="meta")
    assert nt.project_2os(x, x[:, None], x[:, None]).shape == x.shape
    assert nt.whiten(x, nt.WhiteningConfig((1,), (), ())).shape == x.shape


# ---- the functions ----

TILES = ((4, 4),)

FUNCTIONS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "preset": (
        lambda: nt.preset("sdxl"),
        ValueError,
        "preset: unknown preset 'sdxl'; valid: 'flux', 'wan', 'auto'",
    ),
    "preset auto": (
        lambda: nt.preset("auto"),
        ValueError,
        "preset: 'auto' needs a shape, got none; write preset('auto', x.shape)",
    ),
    "preset shape": (
        lambda: nt.preset("auto", (1, 2, 3, 4, 5, 6)),
        ValueError,
        "preset: x must be (N,), (B,N), (C,H,W), (B,C,H,W) or (B,C,F,H,W), got (1, 2, 3, 4, 5, 6)",
    ),
    "preset empty": (
        lambda: nt.preset("flux", (4, 0, 8)),
        ValueError,
        "preset: x has empty samples: (4, 0, 8)",
    ),
    "whiten name": (
        lambda: nt.whiten(real(4, 8, 8), "sdxl"),
        ValueError,
        "whiten: unknown preset 'sdxl'; valid: 'flux', 'wan', 'auto'",
    ),
    "whiten config": (
        lambda: nt.whiten(real(4, 8, 8), 4),
        TypeError,
        "whiten: config must be a preset's name or a WhiteningConfig, got 4",
    ),
    "whiten alpha": (
        lambda: nt.whiten(real(4, 8, 8), nt.preset("flux"), alpha=2.0),
        ValueError,
        "whiten: alpha must be in [1e-100, 0.999999], got 2.0",
    ),
    "whiten shape": (
        lambda: nt.whiten(real(4, 6, 8), nt.preset("flux")),
        ValueError,
        "whiten: tile 8x8 does not fit into the 6x8",
    ),
    "config empty": (
        lambda: nt.WhiteningConfig((), TILES, ()),
        ValueError,
        "WhiteningConfig: chunk_sizes must be positive and not empty",
    ),
    "config chunk 0": (
        lambda: nt.WhiteningConfig((0,), TILES, ()),
        ValueError,
        "WhiteningConfig: chunk_sizes must be positive",
    ),
    "config chunk -4": (
        lambda: nt.WhiteningConfig((4, -4), TILES, ()),
        ValueError,
        "WhiteningConfig: chunk_sizes must be positive",
    ),
    "config chunk number": (
        lambda: nt.WhiteningConfig(4, TILES, ()),
        TypeError,
        "WhiteningConfig: chunk_sizes must be integers",
    ),
    "config chunk 4.5": (
        lambda: nt.WhiteningConfig((4.5,), TILES, ()),
        TypeError,
        "WhiteningConfig: chunk_sizes must be integers",
    ),
    "config chunk None": (
        lambda: nt.WhiteningConfig((None,), TILES, ()),
        TypeError,
        "WhiteningConfig: chunk_sizes must be integers",
    ),
    "config tile number": (
        lambda: nt.WhiteningConfig((4,), (4,), ()),
        TypeError,
        "tile_sizes pairs (th, tw)",
    ),
    "config tile triple": (
        lambda: nt.WhiteningConfig((4,), ((4, 4, 4),), ()),
        TypeError,
        "tile_sizes pairs (th, tw)",
    ),
    "config tile 1x1": (
        lambda: nt.WhiteningConfig((4,), ((1, 1),), ()),
        ValueError,
        "a tile needs at least 2 values, got 1x1",
    ),
    "config tile FULL": (
        lambda: nt.WhiteningConfig((4,), (nt.FULL,), ()),
        ValueError,
        "a tile needs at least 2 values, got 0x0",
    ),
    "config tile -2x-2": (
        lambda: nt.WhiteningConfig((4,), ((-2, -2),), ()),
        ValueError,
        "a tile needs at least 2 values",
    ),
    "config mixing pair": (
        lambda: nt.WhiteningConfig((4,), TILES, ((4, 4),)),
        TypeError,
        "mixing pairs ((th, tw), repeats)",
    ),
    "config mixing odd": (
        lambda: nt.WhiteningConfig((4,), TILES, (((3, 3), 2),)),
        ValueError,
        "a mixing tile needs an even number",
    ),
    "config mixing -2": (
        lambda: nt.WhiteningConfig((4,), TILES, (((-2, -2), 2),)),
        ValueError,
        "a mixing tile needs an even number",
    ),
    "config repeats": (
        lambda: nt.WhiteningConfig((4,), TILES, ((nt.FULL, -1),)),
        ValueError,
        "repeats must not be negative, got -1",
    ),
    "config alpha 0": (
        lambda: nt.WhiteningConfig((4,), TILES, (), 0.0),
        ValueError,
        "WhiteningConfig: alpha must be in [1e-100, 0.999999]",
    ),
    "config alpha 1": (
        lambda: nt.WhiteningConfig((4,), TILES, (), 1),
        ValueError,
        "WhiteningConfig: alpha must be in [1e-100, 0.999999]",
    ),
    "config alpha text": (
        lambda: nt.WhiteningConfig((4,), TILES, (), "small"),
        TypeError,
        "WhiteningConfig: alpha",
    ),
    "table M": (
        lambda: nt.confidence_table(0, 4),
        ValueError,
        "confidence_table: num_chunks and chunk_size must be at least 1, got 0 and 4",
    ),
    "table D": (
        lambda: nt.confidence_table(4, -1),
        ValueError,
        "confidence_table: num_chunks and chunk_size must be at least 1, got 4 and -1",
    ),
    "table alpha": (
        lambda: nt.confidence_table(4, 4, 1.0),
        ValueError,
        "confidence_table: alpha must be in [1e-100, 0.999999]",
    ),
    "table reference": (
        lambda: nt.confidence_table(4, 4, 1e-3, "normal"),
        TypeError,
        "confidence_table: reference must be Normal() or",
    ),
    "table M 4.5": (
        lambda: nt.confidence_table(4.5, 4),
        TypeError,
        "confidence_table: num_chunks and chunk_size must be integers, got 4.5 and 4",
    ),
    "table too long": (
        lambda: nt.confidence_table(2**32 + 1, 1),
        ValueError,
        "confidence_table: 4294967297 chunks of 1 values are too many; the kernels take 4294967296 chunks",
    ),
    "table of an array": (
        lambda: nt.confidence_table(4, 4, reference=ARRAY),
        TypeError,
        "confidence_table: reference must be Normal() or ChiSquare(df), got ndarray of shape (300, 64)",
    ),
    "chi-square": (
        lambda: nt.ChiSquare(0),
        ValueError,
        "ChiSquare: df must be an integer from 1 to 1048576, got 0",
    ),
    "chi-square 2^20 + 1": (
        lambda: nt.ChiSquare(2**20 + 1),
        ValueError,
        "ChiSquare: df must be an integer from 1 to 1048576, got 1048577",
    ),
    "tile of more values": (
        lambda: nt.project_tile_stats(torch.empty(2**21, device="meta"), (1, 2**21), (1,)),
        ValueError,
        "project_tile_stats: tile 1x2097152 cuts the 1x2097152 plane into tiles of up to 2097152 values; "
        "a tile may have 1048577",
    ),
    "chi-square 1.5": (lambda: nt.ChiSquare(1.5), TypeError, "ChiSquare: df must be an integer, got 1.5"),
    "chi-square nan": (
        lambda: nt.ChiSquare(float("nan")),
        TypeError,
        "ChiSquare: df must be an integer, got nan",
    ),
    "preset of a number": (
        lambda: nt.preset("auto", 5),
        TypeError,
        "preset: the shape must be a sequence of integers, got 5",
    ),
    "preset of an array": (
        lambda: nt.preset(ARRAY),
        ValueError,
        "preset: unknown preset ndarray of shape (300, 64); valid: 'flux', 'wan', 'auto'",
    ),
    "whiten with an array": (
        lambda: nt.whiten(real(4, 8, 8), ARRAY),
        TypeError,
        "whiten: config must be a preset's name or a WhiteningConfig, got ndarray of shape (300, 64)",
    ),
    "config of arrays": (
        lambda: nt.WhiteningConfig(ARRAY, ARRAY, ARRAY),
        TypeError,
        "got ndarray of shape (300, 64), ndarray of shape (300, 64), ndarray of shape (300, 64)",
    ),
    "config repeats 2^62": (
        lambda: nt.WhiteningConfig((4,), TILES, ((nt.FULL, 2**62),)),
        ValueError,
        f"WhiteningConfig: mixing repeats must be at most 1024, got {2**62}",
    ),
    "pack an array": (
        lambda: nt.pack_latents(ARRAY),
        TypeError,
        "pack_latents: x must be a torch.Tensor, got ndarray of shape (300, 64)",
    ),
    "unpack an array": (
        lambda: nt.unpack_latents(ARRAY, 64, 64),
        TypeError,
        "unpack_latents: x must be a torch.Tensor, got ndarray of shape (300, 64)",
    ),
    "unpack a negative plane": (
        lambda: nt.unpack_latents(real(1, 1024, 64), -64, -64),
        ValueError,
        "unpack_latents: height must be at least 2, got -64",
    ),
    "unpack a float": (
        lambda: nt.unpack_latents(real(1, 1024, 64), 64.0, 64),
        TypeError,
        "unpack_latents: height must be an integer, got 64.0",
    ),
    "wgnc of an array": (
        lambda: project_wgnc(ARRAY),
        TypeError,
        "project_wgnc: y must be a torch.Tensor, got ndarray of shape (300, 64)",
    ),
    "wgnc of a sparse tensor": (
        lambda: project_wgnc(real(2, 64).to_sparse()),
        TypeError,
        "project_wgnc: tensors must be dense, got a sparse, nested or MKL-DNN tensor",
    ),
    "wgnc batch of an array": (
        lambda: project_wgnc_batched(ARRAY),
        TypeError,
        "project_wgnc_batched: x must be a torch.Tensor, got ndarray of shape (300, 64)",
    ),
    "wgnc shape": (
        lambda: project_wgnc(real(3, 7)),
        ValueError,
        "project_wgnc: a sample needs an even number of values, got 21",
    ),
    "wgnc blocks": (
        lambda: project_wgnc(real(4, 12)),
        ValueError,
        "project_wgnc: block_size must be at least 2 and divide the 24",
    ),
    "wgnc empty": (lambda: project_wgnc(real(0, 32)), ValueError, "project_wgnc: x has empty samples"),
    "wgnc dtype": (
        lambda: project_wgnc(real(32, dtype=torch.int64)),
        TypeError,
        "project_wgnc: x must be one of float16",
    ),
    "hadamard": (
        lambda: nt.hadamard_transform(real()),
        ValueError,
        "hadamard_transform: the last dimension of x is missing",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    function, error, message = FUNCTIONS[name]
    with pytest.raises(error, match=re.escape(message)):
        function()
    assert bool(nt.whiten(real(4, 8, 8)).isfinite().all())
