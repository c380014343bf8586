"""The kernel for Hugging Face's Kernel Hub: it is built, loaded and called, alone and beside the package."""

import ast
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import mpmath
import native_build
import pytest
import torch
from bits import assert_same_bits
from inputs import values
from kernel_calls import every_operator
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

import noisetilt_kernels as nt
from noisetilt_kernels import python_ref
from noisetilt_kernels.config import preset

pytest.importorskip("kernels")  # in requirements.txt, but in no extra
from kernels import Metadata, get_local_kernel
from kernels._rust import Build, Digest, DigestAlgorithm

HUB = Path(__file__).parents[2] / "hub"

ALONE = """
import sys
from pathlib import Path

folder, inputs, results, *absent = sys.argv[1:]

class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
from kernel_calls import load_and_call

kernel = load_and_call(Path(folder), Path(inputs), Path(results))
assert not sys.modules.keys() & set(absent)
print(kernel.backends()["cpu"].backend)
"""


def build(folder: Path, hub: Path = HUB) -> Path:
    subprocess.run([sys.executable, hub / "build.py", folder], check=True, timeout=100)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the kernel without compiled parts, which hub/build.py makes."""
    return build(tmp_path_factory.mktemp("hub") / "kernels") / "torch-noarch"


@pytest.fixture(scope="module")
def kernel(folder: Path) -> ModuleType:
    """The kernel, loaded beside the package."""
    return get_local_kernel(folder)


# ---- alone ----


def _call_alone(
    folder: Path, scratch: Path, inputs: list[Tensor], *absent: str, **environment: str
) -> tuple[str, list[dict[str, Tensor]]]:
    """Call every operator in a process without some modules. Return the backend's name and the results."""
    torch.save(inputs, scratch / "inputs.pt")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, folder, scratch / "inputs.pt", scratch / "results.pt", *absent],
        env={
            **os.environ,
            "PYTHONPATH": str(HUB.parent / "tests" / "helpers"),
            "XDG_CACHE_HOME": str(scratch / "cache"),
            **environment,
        },
        cwd=scratch,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert not (scratch / "cache").exists()
    return done.stdout.strip(), torch.load(scratch / "results.pt")


def _assert_same_results(results: dict[str, Tensor], x: Tensor) -> None:
    for name, expected in every_operator(nt, x).items():
        context = f"{name} {x.dtype} {tuple(x.shape)}"
        if x.dtype == torch.float64 and name in ("project_tile_stats", "whiten", "whiten, config"):
            torch.testing.assert_close(results[name], expected, rtol=1e-10, atol=1e-10, msg=context)
        else:  # the last digits of float64 tables differ
            assert_same_bits(results[name], expected, context)


SHAPES = ((2, 4, 8, 8), (1, 1, 16, 16), (3, 16, 4, 4), (1, 4, 16, 4))


def test_bits_of_the_package_without_it(folder: Path, tmp_path: Path) -> None:
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    inputs = [values("1/k", shape).to(dtype) for dtype in dtypes for shape in SHAPES]
    absent = ("noisetilt_kernels", "noisetilt_cli", "scipy", "numpy", "safetensors", "triton")
    backend, results = _call_alone(folder, tmp_path, inputs, *absent)
    assert backend == "reference"
    for x, result in zip(inputs, results, strict=True):
        _assert_same_results(result, x)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
def test_triton_kernels_without_the_package(folder: Path, tmp_path: Path) -> None:
    inputs = [values("1/k", (1, 4, 8, 8)).to(dtype) for dtype in (torch.bfloat16, torch.float32)]
    variables = {"TRITON_INTERPRET": "1", "NOISETILT_BACKEND": "triton"}
    backend, results = _call_alone(
        folder, tmp_path, inputs, "noisetilt_kernels", "noisetilt_cli", "scipy", **variables
    )
    assert backend == "triton"
    for x, result in zip(inputs, results, strict=True):
        _assert_same_results(result, x)


# ---- beside the package ----


def test_same_functions_as_the_package(kernel: ModuleType) -> None:
    assert set(kernel.__all__) == set(nt.__all__) - {"sampling"}
    for name in kernel.__all__:
        assert getattr(kernel, name).__doc__ == getattr(nt, name).__doc__, name
    assert kernel.preset("flux", (16, 64, 64)) != preset("flux", (16, 64, 64))  # a class of its own
    assert repr(kernel.preset("flux", (16, 64, 64))) == repr(preset("flux", (16, 64, 64)))


def test_operators_have_a_namespace_of_their_own(kernel: ModuleType) -> None:
    name = kernel.__name__
    assert name.isidentifier() and name.startswith("_noisetilt_kernels_cpu_")
    x = values("1/k", (2, 4, 8, 8))
    _assert_same_results(every_operator(kernel, x), x)
    assert_same_bits(getattr(torch.ops, name).whiten(x), torch.ops.noisetilt.whiten(x))


def test_a_changed_kernel_is_loaded_beside_the_first_one(
    folder: Path, kernel: ModuleType, tmp_path: Path
) -> None:
    shutil.copytree(HUB.parent / "noisetilt_kernels", tmp_path / "noisetilt_kernels")  # follows links
    shutil.copytree(HUB.parent / "csrc", tmp_path / "csrc")
    shutil.copytree(HUB, tmp_path / "hub", ignore=shutil.ignore_patterns("build"))
    shutil.copy(HUB.parent / "LICENSE", tmp_path)
    changed = tmp_path / "noisetilt_kernels" / "python_ref" / "transforms.py"
    changed.write_text(changed.read_text().replace("dim=-1)", "dim=-1) * 2", 1))
    other = get_local_kernel(build(tmp_path / "kernels", tmp_path / "hub") / "torch-noarch")
    assert other.__name__ != kernel.__name__
    x = values("1/k", (2, 4, 8, 8))
    assert_same_bits(other.butterfly(x, (8, 8), 1), 2 * kernel.butterfly(x, (8, 8), 1))
    assert_same_bits(kernel.butterfly(x, (8, 8), 1), nt.butterfly(x, (8, 8), 1))


def test_two_builds_are_the_same_to_the_byte(folder: Path, tmp_path: Path) -> None:
    again = build(tmp_path / "kernels") / "torch-noarch"
    for path in again.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (folder / path.relative_to(again)).read_bytes(), path


@pytest.mark.parametrize(
    "call",
    [
        lambda k: k.whiten(torch.zeros(3, 5, 5)),
        lambda k: k.whiten(torch.zeros(4, 8, 8), "sdxl"),
        lambda k: k.whiten(torch.zeros(4, 8, 8, dtype=torch.int64)),
        lambda k: k.whiten([1.0, 2.0]),
        lambda k: k.project_wgnc(torch.zeros(2, 100), 16),
        lambda k: k.project_2os(torch.zeros(8), torch.zeros(2, 4), torch.zeros(4, 2)),
        lambda k: k.butterfly(torch.zeros(4, 8, 8), (8, 9), 1),
        lambda k: k.confidence_table(0, 4),
        lambda k: k.preset("auto"),
        lambda k: k.whiten(torch.zeros(4, 8, 8).to_sparse()),
    ],
)
def test_errors_of_the_package(kernel: ModuleType, call: Callable[[Any], object]) -> None:
    with pytest.raises((ValueError, TypeError)) as expected:
        call(nt)
    with pytest.raises(type(expected.value)) as raised:
        call(kernel)
    assert str(raised.value) == str(expected.value)


def test_a_warning_names_the_line_of_the_user(kernel: ModuleType) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernel.whiten(torch.zeros(1, 256, 64))
    assert [Path(one.filename).name for one in caught] == [Path(__file__).name]
    assert "looks like packed latents" in str(caught[0].message)


def test_compile_fake_tensors_and_gradients(kernel: ModuleType) -> None:
    x = values("1/k", (2, 4, 8, 8))

    def function(x: Tensor) -> Tensor:
        return kernel.whiten(x) + kernel.compact_fourier(x.flatten(1)).view_as(x)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(x), function(x))
    with FakeTensorMode():
        assert kernel.project_wgnc(torch.empty(3, 64, dtype=torch.bfloat16)).shape == (3, 64)
    torch.library.opcheck(getattr(torch.ops, kernel.__name__).butterfly.default, (x, [4, 4], 3))
    flat = x.flatten(1).requires_grad_()
    kernel.compact_fourier(flat).backward(x.flatten(1))
    assert flat.grad is not None
    assert_same_bits(flat.grad, nt.compact_fourier(x.flatten(1), inverse=True))


# ---- tables ----


@pytest.fixture(scope="module")
def kernel_tables(kernel: ModuleType) -> Callable[..., tuple[Tensor, Tensor]]:
    reference = sys.modules[f"{kernel.__name__}.python_ref"]
    table: Callable[..., tuple[Tensor, Tensor]] = reference.confidence_table  # not kept in memory
    return table


@pytest.mark.parametrize(("m", "d"), [(1, 1), (1, 500), (7, 1), (64, 4), (100, 16), (4096, 4), (9000, 2)])
@pytest.mark.parametrize("df", [None, 1, 8, 15, 63, 255])
def test_tables_are_those_of_scipy(
    kernel_tables: Callable[..., tuple[Tensor, Tensor]], kernel: ModuleType, m: int, d: int, df: int | None
) -> None:
    ours = (m, d, 1e-3, nt.Normal() if df is None else nt.ChiSquare(df))
    theirs = (m, d, 1e-3, kernel.Normal() if df is None else kernel.ChiSquare(df))
    for bound, expected in zip(kernel_tables(*theirs), python_ref.confidence_table(*ours), strict=True):
        torch.testing.assert_close(bound, expected, rtol=1e-11, atol=1e-11)
        assert_same_bits(bound.float(), expected.float())


def test_two_entries_of_the_largest_table_for_flux_differ(
    kernel_tables: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    for bound, expected in zip(kernel_tables(16384, 4), python_ref.confidence_table(16384, 4), strict=True):
        assert (bound.float() != expected.float()).sum() <= 1
        torch.testing.assert_close(bound.float(), expected.float(), rtol=2e-7, atol=0)


@pytest.mark.parametrize("alpha", [1e-100, 0.05, 0.9999, 0.999999])
@pytest.mark.parametrize(("m", "d"), [(1, 1), (10, 3), (100, 16), (1024, 4)])
@pytest.mark.parametrize("df", [None, 1, 15, 1000])
def test_every_alpha_has_a_table(kernel: ModuleType, m: int, d: int, alpha: float, df: int | None) -> None:
    reference = kernel.Normal() if df is None else kernel.ChiSquare(df)
    lower, upper = kernel.confidence_table(m, d, alpha, reference)
    assert bool((lower.isfinite() & upper.isfinite() & (lower <= upper)).all())


def test_quantiles_against_mpmath(kernel: ModuleType) -> None:
    special = sys.modules[f"{kernel.__name__}.python_ref.special"]
    probabilities = (1e-60, 5e-4, 0.3, 0.5, 0.9, 0.999)
    p = torch.tensor(probabilities, dtype=torch.float64)
    for a, b in ((1, 1), (1, 40), (7, 3), (60, 2), (150, 151)):
        count = [torch.tensor(float(n), dtype=torch.float64) for n in (a, b)]
        for q, x in zip(probabilities, special.beta_quantile(*count, p).tolist(), strict=True):
            with mpmath.workdps(60):
                cdf = mpmath.betainc(a, b, 0, x, regularized=True)
                density = mpmath.mpf(x) ** (a - 1) * (1 - mpmath.mpf(x)) ** (b - 1) / mpmath.beta(a, b)
                assert abs((cdf - mpmath.mpf(q)) / density) < 3e-14 * x, (a, b, q)
    for a in (0.5, 1.0, 7.5, 31.5, 127.5):
        for upper, quantile in ((False, special.gamma_quantile), (True, special.gamma_upper_quantile)):
            for q, x in zip(probabilities, quantile(a, p).tolist(), strict=True):
                with mpmath.workdps(60):
                    ends = (x, mpmath.inf) if upper else (0, x)
                    tail = mpmath.gammainc(a, *ends, regularized=True)
                    density = mpmath.mpf(x) ** (a - 1) * mpmath.exp(-x) / mpmath.gamma(a)
                    assert abs((tail - mpmath.mpf(q)) / density) < 2e-13 * x, (a, q, upper)


def test_roots_and_angles_are_those_of_numpy(kernel: ModuleType) -> None:
    special = sys.modules[f"{kernel.__name__}.python_ref.special"]
    x = torch.cat([values("1/k", (1, 4096)).double()[0], torch.tensor([0.0, -0.0, torch.inf, torch.nan])])
    assert_same_bits(special.sqrt(x), python_ref.special.sqrt(x))
    angles = torch.linspace(0, torch.pi / 4, 4097, dtype=torch.float64)
    assert_same_bits(special.cos(angles), python_ref.special.cos(angles))
    assert_same_bits(special.sin(angles), python_ref.special.sin(angles))


# ---- files ----


def test_imports_are_relative_or_of_torch_and_triton(folder: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    for path in (folder / "build").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [str(node.module)]
            assert {name.partition(".")[0] for name in names} <= allowed, f"{path}: {names}"


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    """A folder with other files is refused, as the clone would be, and nothing is removed or written."""
    (tmp_path / "torch-noarch").mkdir()
    for name in (".git", "torch-noarch/notes.txt", "file"):
        (tmp_path / name).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for place, words in ((tmp_path, "has '.git'; name a new folder"), (tmp_path / "file", "got the file")):
        done = subprocess.run(
            [sys.executable, HUB / "build.py", place], capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 1 and words in done.stderr
        assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / ".git").unlink()
    (tmp_path / "file").unlink()
    build(tmp_path)
    assert not (tmp_path / "torch-noarch" / "notes.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stable-abi", "torch-noarch"]


def test_license_is_in_every_project_and_variant(folder: Path) -> None:
    variants = [folder / "build" / name for name in ("torch-cpu", "torch-cuda")]
    for place in (folder, folder.parent / "stable-abi", *variants):
        assert (place / "LICENSE").read_bytes() == (HUB.parent / "LICENSE").read_bytes(), place


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_metadata(folder: Path, backend: str, tmp_path: Path) -> None:
    shutil.copytree(
        folder / "build" / f"torch-{backend}", tmp_path / "it", ignore=shutil.ignore_patterns("__pycache__")
    )
    metadata = Metadata.read_from_file(tmp_path / "it" / "metadata.json")
    assert str(metadata.name) == "noisetilt-kernels" and metadata.license == "apache-2.0"
    assert metadata.id.startswith(f"_noisetilt_kernels_{backend}_") and metadata.python_depends == []
    metadata.digest.validate(Digest.hash_variant(DigestAlgorithm.SHA256, tmp_path / "it"))
    card = (folder / "README.md").read_text()
    assert "\nlicense: apache-2.0\n" in card and "\n- kernel\n" in card


def test_project_of_kernel_builder(folder: Path) -> None:
    assert [str(backend).lower() for backend in Build.open(folder).general.backends] == ["cpu", "cuda"]
    sources = folder / "torch-ext" / "noisetilt_kernels"
    assert not (sources / "_ops.py").exists()  # kernel-builder writes it
    variant = folder / "build" / "torch-cuda"
    for path in sources.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (variant / path.relative_to(sources)).read_bytes(), path


# ---- compiled kernel ----

REGISTRATION = """
#include <Python.h>
#define REGISTER_EXTENSION(name) REGISTER(name)
#define REGISTER(name)                                                       \\
  PyMODINIT_FUNC PyInit_##name() {                                           \\
    static PyModuleDef definition{PyModuleDef_HEAD_INIT, #name, nullptr, 0}; \\
    return PyModule_Create(&definition);                                     \\
  }
"""


@pytest.mark.slow
def test_stable_abi_kernel(folder: Path, tmp_path: Path) -> None:
    """kernel-builder is imitated: it copies the files that build.toml lists, and compiles them."""
    project = folder.parent / "stable-abi"
    assert [str(backend).lower() for backend in Build.open(project).general.backends] == ["cpu", "cuda"]
    sections = tomllib.loads((project / "build.toml").read_text())
    for name in (*sections["torch"]["src"], *sections["kernel"]["noisetilt_cuda"]["src"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / name, tmp_path / name)
    (tmp_path / "registration.h").write_text(REGISTRATION)

    name, torch_folder = "_noisetilt_kernels_cpu_test", Path(torch.__file__).parent
    flags = [
        "-std=c++20 -fPIC -DPy_LIMITED_API=0x03090000 -DTORCH_TARGET_VERSION=0x020b000000000000",
        f"-DTORCH_EXTENSION_NAME={name}",
        *[f"-I{tmp_path / one}" for one in (".", *sections["torch"]["include"])],
        *[f"-isystem {torch_folder / one}" for one in ("include", "include/torch/csrc/api/include")],
        f"-isystem {sysconfig.get_path('include')}",
        *sections["torch"]["cxx-flags"],
    ]
    sources = [source for source in sections["torch"]["src"] if source.endswith(".cpp")]
    library = native_build.build(
        tmp_path / "objects",
        [
            f"rule compile\n  command = {os.environ.get('CXX', 'c++')} {' '.join(flags)} -c $in -o $out",
            f"rule link\n  command = {os.environ.get('CXX', 'c++')} -shared -pthread $in "
            f"-L{torch_folder / 'lib'} -ltorch_cpu -ltorch -lc10 -o $out",
            *[f"build {source}.o: compile {tmp_path / source}" for source in sources],
            f"build {name}.abi3.so: link {' '.join(f'{source}.o' for source in sources)}",
        ],
        f"{name}.abi3.so",
    )

    machine = f"{platform.machine()}-{platform.system().lower()}"
    variant = tmp_path / "kernel" / "build" / f"torch-stable-abi211-cpu-{machine}"
    shutil.copytree(project / "torch-ext" / "noisetilt_kernels", variant)
    shutil.copy(library, variant)
    ops = (folder / "build" / "torch-cpu" / "_ops.py").read_text()
    ops = re.sub(r"_noisetilt_kernels_cpu_\w+", name, ops)
    (variant / "_ops.py").write_text(f"from . import {name}\n{ops}")
    metadata = json.loads((folder / "build" / "torch-cpu" / "metadata.json").read_text())
    metadata = {**metadata, "id": name, "digest": None}
    (variant / "metadata.json").write_text(json.dumps(metadata))

    kernel = get_local_kernel(tmp_path / "kernel")
    assert kernel.__name__ == name and kernel.backends()["cpu"].backend == "cpu"
    for dtype in (torch.float16, torch.float32, torch.float64):
        x = values("1/k", (2, 4, 8, 8)).to(dtype)
        _assert_same_results(every_operator(kernel, x), x)
