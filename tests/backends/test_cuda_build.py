"""Build of the CUDA library: the GPUs that its architectures serve, and the debug build."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import noisetilt_kernels as nt
from noisetilt_kernels.backends import cuda, library

SETUP = str(Path(nt.__file__).parents[1] / "setup.py")
NVCC_VERSIONS = ((12, 4, 0), (12, 8, 61), (13, 0, 48))
CAPABILITIES = (
    (8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)
)  # fmt: skip


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    for name in ("TORCH_CUDA_ARCH_LIST", "NOISETILT_CUDA_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return SimpleNamespace(**runpy.run_path(SETUP))


@pytest.fixture
def serves(monkeypatch: pytest.MonkeyPatch):
    """Function that returns True if a library built for some architectures serves a GPU."""

    def answer(architectures: list[str], capability: tuple[int, int]) -> bool:
        monkeypatch.setattr(library, "cuda_build_info", lambda: {"architectures": " ".join(architectures)})
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
        return cuda._unserved_gpu() is None

    return answer


@pytest.mark.parametrize("version", NVCC_VERSIONS)
def test_the_default_serves_every_supported_gpu(version, build, serves) -> None:
    built = build.architectures(version)
    assert [capability for capability in CAPABILITIES if not serves(built, capability)] == []
    assert not serves(built, (7, 5))
    assert sum(arch.endswith("+PTX") for arch in built) == 1, "each adds its size to the library"


@pytest.mark.parametrize(
    ("listed", "served"),
    [
        ("9.0", [(9, 0)]),
        ("8.0 9.0", [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0)]),
        ("10.0", [(10, 0), (10, 3)]),
        ("10.0+PTX", [(10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)]),
        ("12.0+PTX", [(12, 0), (12, 1), (13, 0)]),
        ("Blackwell", [(10, 0), (10, 3), (12, 0), (12, 1), (13, 0)]),
    ],
)
def test_a_list_serves_what_its_code_runs_on(listed, served, build, serves, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    built = build.architectures(NVCC_VERSIONS[-1])
    assert [capability for capability in CAPABILITIES if serves(built, capability)] == served


def test_ptx_adds_an_image_to_the_binary_code(build) -> None:
    assert build.gencode("9.0") == ["-gencode=arch=compute_90,code=sm_90"]
    assert build.gencode("8.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=compute_80",
    ]


def test_the_debug_build_is_made_if_it_is_asked_for(build, monkeypatch: pytest.MonkeyPatch) -> None:
    (debug,) = build.FACTS["cuda"]["debug_flags"]
    for value, wanted in (("0", False), ("", False), ("1", True)):
        monkeypatch.setenv("NOISETILT_CUDA_DEBUG", value)
        assert (debug in runpy.run_path(SETUP)["NVCC_FLAGS"]) is wanted
    sources = (Path(SETUP).parent / "csrc" / "cuda" / name for name in ("team.cuh", "policy.h"))
    assert all(f"#ifdef {debug.removeprefix('-D')}" in source.read_text() for source in sources)


def test_the_debug_flags_reach_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects of the two builds are kept apart, and the library lists the flags that it was built with."""
    from setuptools import Distribution  # not there where only a wheel is tested

    objects = []
    for value in ("0", "1"):
        monkeypatch.setenv("FORCE_CUDA", "1")
        monkeypatch.setenv("NOISETILT_CUDA_DEBUG", value)
        build = SimpleNamespace(**runpy.run_path(SETUP))
        monkeypatch.setitem(build.find_nvcc.__globals__, "find_nvcc", lambda: "/nvcc")
        monkeypatch.setitem(build.find_nvcc.__globals__, "nvcc_version", lambda nvcc: NVCC_VERSIONS[-1])
        commands: list[list[str]] = []
        builder = build.BuildLibraries(Distribution())
        builder.compiler, builder.force = SimpleNamespace(compiler_cxx=["g++"]), True
        builder.spawn = commands.append
        builder.build_cuda(Path("_C_cuda.so"))
        assert {command[0] for command in commands} == {"/nvcc"}
        assert all(("-DNOISETILT_CUDA_DEBUG" in command) == (value == "1") for command in commands)
        (binding,) = (command for command in commands if command[-3].endswith("cuda_ops.cpp"))
        (listed,) = (option for option in binding if option.startswith("-DNOISETILT_CUDA_FLAGS="))
        assert ("-DNOISETILT_CUDA_DEBUG" in listed) == (value == "1")
        objects.append({command[-1] for command in commands if "-c" in command})
    assert len(objects[0]) == len(objects[1]) > 5
    assert objects[0].isdisjoint(objects[1])
