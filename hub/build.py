"""Make the kernel for Hugging Face's Kernel Hub from the sources of the package.

    python hub/build.py [FOLDER]

FOLDER, by default hub/build, is made again. `kernels.get_local_kernel` loads it. It is also a project of
Hugging Face's kernel-builder, which publishes it:

- `build/torch-cpu` and `build/torch-cuda`: the kernel, the same files for both
- `torch-ext/noisetilt_kernels`: its sources, for kernel-builder
- `build.toml`, `flake.nix`, `CARD.md`, `README.md`: what kernel-builder builds, and the page on the Hub

The sources are the files of the package. The files in hub/kernel take the place of those of the same name, so
that the kernel imports nothing but torch, Triton and the standard library. Nothing else is changed.
"""

import base64
import hashlib
import json
import shutil
import sys
from pathlib import Path

HUB = Path(__file__).parent
PACKAGE = HUB.parent / "noisetilt_kernels"

NAME = "noisetilt-kernels"
MODULE = NAME.replace("-", "_")
VERSION = 0  # of the kernel's interface; the Hub's convention for one that may still change
BACKENDS = ("cpu", "cuda")

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
    """Return the files of a build variant: the sources, `_ops.py` and `metadata.json`."""
    name = f"_{MODULE}_{backend}_{unique_id(files)}"
    files = {**files, "_ops.py": OPS_MODULE.format(id=name).encode()}
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


def build(folder: Path) -> None:
    """Make the kernel in `folder`, which is removed first."""
    files = sources()
    shutil.rmtree(folder, ignore_errors=True)
    for backend in BACKENDS:
        write(folder / "build" / f"torch-{backend}", variant(files, backend))
    write(folder / "torch-ext" / MODULE, files)
    for name, copy in (("build.toml", "build.toml"), ("flake.nix", "flake.nix")):
        shutil.copy(HUB / name, folder / copy)
    for copy in ("README.md", "CARD.md"):
        shutil.copy(HUB / "README.md", folder / copy)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HUB / "build")
