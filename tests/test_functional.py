"""The public Python functions: a typed, documented twin of every operator, and types for users' scripts."""

import importlib
import inspect
import pkgutil
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import noisetilt_kernels as nt

SOURCES = Path(nt.__file__).parents[1]
OPERATORS = sorted(
    name.removeprefix("noisetilt::")
    for name in torch._C._dispatch_get_all_op_names()
    if name.startswith("noisetilt::") and not name.startswith("noisetilt::_")
)


def test_the_operators_are_those_of_the_design() -> None:
    assert len(OPERATORS) == 8
    assert set(OPERATORS) <= set(nt.__all__)


def test_readme_and_help_name_the_same_operators() -> None:
    _, table = (SOURCES / "README.md").read_text().split("\n## Operators\n")
    cells = re.findall(r"^\|([^|]*)\|", table.split("\n## ")[0], re.MULTILINE)
    assert sorted(name for cell in cells for name in re.findall(r"`nt\.(\w+)\(", cell)) == OPERATORS
    assert sorted(re.findall(r"`(\w+)`", inspect.getdoc(nt).split("They call")[0])) == OPERATORS
    assert set(OPERATORS) <= set(re.findall(r"^    (\w+)\(", pydoc.plain(pydoc.render_doc(nt)), re.MULTILINE))


def test_every_error_of_the_package_is_a_noisetilt_error() -> None:
    found = {
        value
        for module in pkgutil.walk_packages(nt.__path__, "noisetilt_kernels.")
        if not module.name.endswith("__main__") and (loaded := importable(module.name))
        for value in vars(loaded).values()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    ours = {error for error in found if error.__module__.startswith("noisetilt_kernels.")}
    assert len(ours) >= 7 and all(issubclass(error, nt.NoisetiltError) for error in ours), ours


def importable(name: str) -> ModuleType | None:
    """Return the module, or None if a package that it needs is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


@pytest.mark.parametrize("protocol", [nt.sampling.FlowModel, nt.sampling.OneStepModel])
def test_the_help_of_a_protocol_lists_its_members(protocol: type) -> None:
    members = {name for name in vars(protocol) if not name.startswith("_")}
    assert len(members) == (5 if protocol is nt.sampling.FlowModel else 3)
    assert set(re.findall(r"^    (\w+)(?:\(.*\))?: ", inspect.getdoc(protocol), re.MULTILINE)) == members


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_has_a_typed_and_documented_twin(name: str) -> None:
    twin = getattr(nt, name)
    signature = inspect.signature(twin)
    assert twin.__module__ == "noisetilt_kernels.functional"
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in inspect.getdoc(twin)
    assert signature.return_annotation is torch.Tensor
    for parameter in signature.parameters.values():
        assert parameter.annotation is not parameter.empty
        assert re.search(rf"^    .*\b{parameter.name}\b.*: ", inspect.getdoc(twin), re.MULTILINE), parameter


@pytest.mark.parametrize("name", OPERATORS)
def test_the_defaults_are_those_of_the_schema(name: str) -> None:
    schema = getattr(torch.ops.noisetilt, name).default._schema
    parameters = inspect.signature(getattr(nt, name)).parameters
    defaults = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    if name == "whiten":  # takes a configuration as well, whose alpha is the default
        assert defaults == {"preset": parameters["config"].default, "alpha": nt.preset("flux").alpha}
        assert parameters["alpha"].default is None
        return
    assert [a.name for a in schema.arguments] == list(parameters)
    assert defaults == {n: p.default for n, p in parameters.items() if p.default is not p.empty}


def test_importing_the_package_imports_no_slow_part_of_scipy() -> None:
    """scipy.special takes most of the time of the import. Only a table that is not on disk needs it."""
    code = "import sys, noisetilt_kernels; print(*(name for name in sys.modules if name == 'scipy.special'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(SOURCES)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


def test_every_public_name_is_documented() -> None:
    for name in nt.__all__:
        if name != "FULL":  # a tuple
            assert inspect.getdoc(getattr(nt, name)), name
    assert "drop_in" not in nt.__all__


SCRIPT = """
from collections.abc import Sequence

import torch
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import drop_in, sampling


class Flow:
    shape, device = (16, 32, 32), torch.device("cpu")

    def sigmas(self, n: int) -> Tensor:
        return torch.linspace(1, 0, n + 1)

    def velocity(self, x: Tensor, sigma: float, prompts: Sequence[str]) -> Tensor:
        return (sigma - (1 - sigma) / 4) / (sigma**2 + (1 - sigma) ** 2 / 4) * x

    def decode(self, x0: Tensor) -> Tensor:
        return x0[:, :3].sigmoid()


def redness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].mean(dim=(1, 2)) - images[:, 1].mean(dim=(1, 2))


class Blur:
    @property
    def shape(self) -> tuple[int, ...]:
        return (4, 8, 8)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def generate(self, x: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.nn.functional.avg_pool2d(x[:, :3], 2).sigmoid()


class Darkness:
    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -self.weight * images.flatten(1).mean(dim=1)


flow: sampling.FlowModel = Flow()
reward: sampling.Reward = redness
options = sampling.SamplerOptions(seed=1, micro_batch=2, on_record=lambda record: None)
result: sampling.Result = sampling.ntrk(Flow(), redness, ["red"] * 2, rho=0.1, steps=3, options=options)
best = sampling.best_of_n(sampling.ntrk, flow, Darkness(2.0), "dark", n=2, rho=0.1, steps=2)
images: Tensor = flow.decode(result.latents[[result.best]])
values: list[float] = sampling.dps(Flow(), reward, "red", strength=lambda t: 2 * t, steps=2).rewards.tolist()
noise: Tensor = sampling.wgnc(Blur(), Darkness(1.0), ("a", "b"), iterations=2).latents
method: sampling.Method = sampling.parse_method("svdd:candidates=2,steps=2")
result = method.sample(flow, Darkness(1.0), "dark", options)
x = torch.randn(1, 16, 64, 64)
config = nt.WhiteningConfig([4, 16], [[4, 4], [8, 8]], [[nt.FULL, 0], ([8, 8], 6)], alpha=1e-3)
tiles: tuple[tuple[int, int], ...] = config.tile_sizes
y: Tensor = nt.whiten(x, config) + nt.whiten(x, "flux", alpha=0.01)
y = nt.whiten(x, nt.preset("auto", x.shape))
lower, upper = nt.confidence_table(1024, 4, reference=nt.ChiSquare(3))
y = nt.project_2os(y.flatten(1)[:, :4096], lower.float(), upper.float())
y = nt.project_tile_stats(x, [4, 4], [4, 16]) + nt.butterfly(x, [8, 8], steps=6)
y = nt.hadamard_transform(drop_in.project_wgnc(x) + drop_in.project_wgnc_batched(x), 64**-0.5)
z: Tensor = nt.project_wgnc(nt.compact_fourier(x.flatten(1)), block_size=8)
backend: str = nt.backends()["cpu"].backend
"""
MISTAKES = "nt.whiten(x, 5)", "sampling.ntrk(Blur(), redness, 'red')", "sampling.ntrk(flow, 1, 'red')"


def strict_errors(directory: Path, script: str) -> list[str]:
    """Errors of `mypy --strict` in the script itself."""
    (directory / "script.py").write_text(script)
    options = ["--strict", "--follow-imports=silent", f"--cache-dir={SOURCES / 'build' / 'mypy-strict'}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "script.py"],
        cwd=directory,
        env={"MYPYPATH": str(SOURCES), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("script.py") and "error" in line]


def test_a_users_script_passes_mypy_strict(tmp_path: Path) -> None:
    """The script has lists in a WhiteningConfig, a custom reward and a custom flow. It also runs."""
    pytest.importorskip("mypy")
    assert strict_errors(tmp_path, SCRIPT) == []
    assert len(strict_errors(tmp_path, SCRIPT + "\n".join(MISTAKES))) == len(MISTAKES)
    exec(compile(SCRIPT, "script.py", "exec"), {"__name__": "script"})
