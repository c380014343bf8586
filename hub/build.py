"""Make two projects for Hugging Face's kernel-builder, which publishes kernels on the Kernel Hub.

    python hub/build.py [FOLDER]

FOLDER, by default hub/build, gets two folders, which are made again. It must hold nothing else:

- `torch-noarch`: the kernel in Triton and PyTorch. It is also ready to be loaded by
  `kernels.get_local_kernel`, because nothing has to be compiled.
- `stable-abi`: the kernel with the C++ and CUDA sources, which kernel-builder compiles.

The Python sources of both are the files of the package. The files in hub/kernel take the place of those of
the same name, so that a kernel imports nothing but torch, Triton and the standard library.
"""

import base64
import hashlib
import json
import shutil
import sys
from pathlib import Path

HUB = Path(__file__).parent
PACKAGE = HUB.parent / "noisetilt_kernels"
LICENSE = HUB.parent / "LICENSE"
PROJECTS = ("torch-noarch", "stable-abi")

NAME = "noisetilt-kernels"
MODULE = NAME.replace("-", "_")
VERSION = 0  # of the kernel's interface; the Hub's convention for one that may still change
BACKENDS = ("cpu", "cuda")
SCHEMAS = "noisetilt_kernels/schemas.def"
FACTS = json.loads((HUB.parent / "csrc" / "build.json").read_text(encoding="utf-8"))

SOURCES = (
    "__init__.py",
    "autograd_shortcut.py",
    "checks.py",
    "config.py",
    "functional.py",
    "ops.py",
    "registration.py",
    "schemas.def",
    "backends/*.py",
    "backends/triton/*",
    "python_ref/*.py",
)
"""Files of the package that the kernel consists of."""

WITHOUT = (
    "from . import sampling\n",
    '    "sampling",\n',
    " `sampling` has the samplers that use them.",
)
"""Text that the kernel's __init__.py lacks: it has the operators alone."""

# kernel-builder writes a module of the same content and name
OPS_MODULE = '''"""Namespace of the operators of this build."""

import torch

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    """Return the full name of an operator."""
    return f"{id}::{{op_name}}"
'''


def sources() -> dict[str, bytes]:
    """Return the kernel's files by their paths, without `_ops.py`, which differs between variants."""
    found = {
        path.relative_to(PACKAGE).as_posix(): path.read_bytes()
        for pattern in SOURCES
        for path in sorted(PACKAGE.glob(pattern))
        if path.is_file()
    }
    init = found["__init__.py"].decode()
    for text in WITHOUT:
        if init.count(text) != 1:
            raise ValueError(f"hub/build.py: {text!r} must be once in {PACKAGE / '__init__.py'}")
        init = init.replace(text, "")
    found["__init__.py"] = init.encode()
    for path in sorted((HUB / "kernel").rglob("*.py")):
        name = path.relative_to(HUB / "kernel").as_posix()
        if name not in found:
            raise ValueError(f"hub/build.py: {path} takes the place of no file of the package")
        found[name] = path.read_bytes()
    return found


def unique_id(files: dict[str, bytes]) -> str:
    """Return a short text that differs if any file does."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:10]


def variant(files: dict[str, bytes], backend: str) -> dict[str, bytes]:
    """Return the files of a build variant: the sources, `_ops.py`, the license and `metadata.json`."""
    name = f"_{MODULE}_{backend}_{unique_id(files)}"
    files = {**files, "_ops.py": OPS_MODULE.format(id=name).encode(), LICENSE.name: LICENSE.read_bytes()}
    metadata = {
        "name": NAME,
        "id": name,
        "version": VERSION,
        "license": "apache-2.0",
        "python-depends": [],
        "kernel-depends": [],
        "backend": {"type": backend},
        "digest": {
            "algorithm": "sha256",
            "files": {
                path: base64.b64encode(hashlib.sha256(content).digest()).decode()
                for path, content in sorted(files.items())
            },
        },
    }
    return {**files, "metadata.json": json.dumps(metadata, indent=2).encode()}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# ---- projects ----

BINDING = b"""\
// Makes the library a Python module, so that importing it registers the operators.
#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
"""

GENERAL = f"""\
[general]
name = "{NAME}"
version = {VERSION}
edition = 5
license = "apache-2.0"
backends = {json.dumps(BACKENDS)}

"""
NOARCH = """\
[torch-noarch]
pyext = ["py", "json", "def"]
"""


def stable_abi() -> str:
    """Return the sections of build.toml for the compiled kernel, with the facts of csrc/build.json.

    The C++ kernels are in every build, as in the package. Of their instruction-set variants there is only the
    portable one, because kernel-builder compiles each file once.
    """
    cpu, cuda = FACTS["cpu"], FACTS["cuda"]
    oldest, *newer = (architecture["name"] for architecture in cuda["architectures"])
    # the namespace of C++ becomes that of the operators, which differs between builds
    renamed = "-Dnoisetilt=TORCH_EXTENSION_NAME"
    sections: dict[str, dict[str, object]] = {
        "torch": {
            "pyext": ["py", "json", "def"],
            "include": ["csrc"],
            # kernel-builder copies these files only, so headers are listed too
            "src": [
                "torch-ext/torch_binding.cpp",
                "csrc/ops.cpp",
                *[f"csrc/cpu/{name}.cpp" for name in (*cpu["sources"], *cpu["variant_sources"])],
                *_sources_in("csrc/*.h"),
                *_sources_in("csrc/cpu/*.h"),
                SCHEMAS,
            ],
            "cxx-flags": [renamed, "-DNOISETILT_VARIANT=baseline", *_without_standard(cpu["flags"])],
        },
        "torch.stable-abi": dict.fromkeys(BACKENDS, "2.11"),
        "kernel.noisetilt_cuda": {
            "backend": "cuda",
            "depends": ["torch"],
            "include": ["csrc"],
            "src": ["csrc/cuda_ops.cpp", *_sources_in("csrc/cuda/*.cu"), *_sources_in("csrc/cuda/*.*h")],
            "cuda-capabilities": [f"{oldest}+PTX", *newer],
            "cuda-flags": [renamed, *_without_standard(cuda["flags"])],
            "cxx-flags": [renamed, "-DUSE_CUDA", *cuda["host_flags"]],
        },
    }
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in section.items())
        for name, section in sections.items()
    )


def compiled_sources() -> dict[str, bytes]:
    """Return the C++ and CUDA sources of the compiled kernel.

    The two files that describe their build get the macros that setup.py otherwise sets.
    """
    names = _sources_in("csrc/*.*") + _sources_in("csrc/cpu/*") + _sources_in("csrc/cuda/*")
    files = {name: (HUB.parent / name).read_bytes() for name in names}
    cpu_flags, cuda_flags = (" ".join(FACTS[device]["flags"]) for device in ("cpu", "cuda"))
    oldest = FACTS["cuda"]["architectures"][0]["name"]  # its PTX serves newer GPUs too
    for name, macros in (
        ("ops", {"BUILD_FLAGS": cpu_flags, "BUILD_VARIANTS": "baseline"}),
        (
            "cuda_ops",
            {
                "NVCC_VERSION": "of kernel-builder",
                "CUDA_FLAGS": cuda_flags,
                "CUDA_ARCHITECTURES": f"{oldest}+PTX",
            },
        ),
    ):
        lines = "".join(f'#define NOISETILT_{macro} "{value}"\n' for macro, value in macros.items())
        files[f"csrc/{name}.cpp"] = lines.encode() + files[f"csrc/{name}.cpp"]
    return {
        **files,
        SCHEMAS: (HUB.parent / SCHEMAS).read_bytes(),
        "torch-ext/torch_binding.cpp": BINDING,
    }


def _without_standard(flags: list[str]) -> list[str]:
    """Return the flags without -std, which kernel-builder chooses as its torch needs."""
    return [flag for flag in flags if not flag.startswith("-std=")]


def _sources_in(pattern: str) -> list[str]:
    return sorted(path.relative_to(HUB.parent).as_posix() for path in HUB.parent.glob(pattern))


def write_project(folder: Path, sections: str, files: dict[str, bytes]) -> None:
    """Write what every project of kernel-builder has."""
    write(folder / "torch-ext" / MODULE, files)
    write(folder, {"build.toml": (GENERAL + sections).encode()})
    for path in (HUB / "flake.nix", LICENSE):
        shutil.copy(path, folder / path.name)
    for name in ("CARD.md", "README.md"):  # kernel-builder publishes CARD.md as README.md
        shutil.copy(HUB / "README.md", folder / name)


def check_folder(folder: Path) -> None:
    """Exit unless `folder` can be replaced: it is absent, or holds nothing but the two projects."""
    if folder.exists() and not folder.is_dir():
        sys.exit(f"hub/build.py: FOLDER must be the path of a folder, got the file {str(folder)!r}")
    others = sorted({path.name for path in folder.glob("*")} - set(PROJECTS))
    if others:
        sys.exit(
            f"hub/build.py: FOLDER must hold only {' and '.join(PROJECTS)}, because these are removed, but "
            f"{str(folder)!r} has {others[0]!r}; name a new folder"
        )


def build(folder: Path) -> None:
    """Make both projects in `folder`. Those that are there are removed first, and nothing else."""
    check_folder(folder)
    files = sources()
    noarch, compiled = (folder / name for name in PROJECTS)
    for project in (noarch, compiled):
        if project.exists():
            shutil.rmtree(project)
    write_project(noarch, NOARCH, files)
    for backend in BACKENDS:
        write(noarch / "build" / f"torch-{backend}", variant(files, backend))
    write_project(compiled, stable_abi(), files)
    write(compiled, compiled_sources())


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HUB / "build")
