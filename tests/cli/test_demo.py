"""`noisetilt demo`: the printed numbers, recomputed with numpy, and the picture."""

import io
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from noisetilt_cli import main
from noisetilt_kernels import cli, python_ref
from noisetilt_kernels.cli import demo_operators, demo_sampling

OPERATORS = ["input", "norm projection", "WGNC", "W"]
INPUTS = ["photograph", "Gaussian noise"]
COLUMNS = ["cosine", "distance", "relative_norm", "peak", "milliseconds"]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["demo", *map(str, arguments)])


@pytest.fixture(scope="module", autouse=True)
def operators_alone() -> Iterator[None]:
    """Replace the second part, which samples for a minute and has its own test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_sampling, "run", lambda seed, picture: (f"sampled with seed {seed}", [picture]))
        yield


def parse_table(text: str) -> dict[tuple[str, str], dict[str, float]]:
    """Return {(input, operator): {column: number}} from the printed table."""
    rows = {}
    for line in text.splitlines():
        for name in INPUTS:
            if line.startswith(name):
                *operator, cosine, distance, relative_norm, peak, milliseconds = line[len(name) :].split()
                numbers = map(float, (cosine, distance, relative_norm, peak, milliseconds))
                rows[name, " ".join(operator)] = dict(zip(COLUMNS, numbers, strict=True))
    return rows


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Path of the picture and output of one run."""
    path = tmp_path_factory.mktemp("demo") / "picture.png"
    result = invoke("--out", path)
    assert result.exit_code == 0, result.output
    return path, result.output


def recomputed(x: Tensor, y: Tensor) -> dict[str, float]:
    """Return the printed numbers for input x and output y, computed with numpy in float64."""
    a, b = (tensor.numpy().astype(np.float64).ravel() for tensor in (x, y))
    power = np.abs(np.fft.fft2(b.reshape(16, 64, 64), norm="ortho")) ** 2
    return {
        "cosine": a @ b / math.sqrt((a @ a) * (b @ b)),
        "distance": np.linalg.norm(a - b),
        "relative_norm": np.linalg.norm(b) / math.sqrt(b.size),
        "peak": power.max() / power.mean(),
    }


def independent_output(operator: str, x: Tensor) -> Tensor:
    if operator == "input":
        return x
    if operator == "norm projection":
        return x * (math.sqrt(x.numel()) / x.double().norm())
    if operator == "WGNC":
        return python_ref.project_wgnc(x.flatten(1)).view_as(x)
    return torch.ops.noisetilt.whiten(x, "flux")


def test_table_holds_the_recomputed_numbers(printed: tuple[Path, str]) -> None:
    _, text = printed
    rows = parse_table(text)
    assert list(rows) == [(name, operator) for name in INPUTS for operator in OPERATORS]
    inputs = {
        "photograph": demo_operators.photograph_latent(),
        "Gaussian noise": demo_operators.noise_latent(0),
    }
    for (name, operator), row in rows.items():
        expected = recomputed(inputs[name], independent_output(operator, inputs[name]))
        assert row["cosine"] == pytest.approx(expected["cosine"], abs=2e-6)
        assert row["distance"] == pytest.approx(expected["distance"], abs=0.01)
        assert row["relative_norm"] == pytest.approx(expected["relative_norm"], abs=1e-4)
        assert row["peak"] == pytest.approx(expected["peak"], abs=0.1)
        assert row["milliseconds"] >= 0


def test_table_shows_the_effects_of_the_operators(printed: tuple[Path, str]) -> None:
    rows = parse_table(printed[1])
    assert rows["Gaussian noise", "W"]["cosine"] > 0.99999
    assert 0.988 < rows["Gaussian noise", "WGNC"]["cosine"] < 0.992
    assert rows["Gaussian noise", "W"]["distance"] < 1 < rows["Gaussian noise", "WGNC"]["distance"]
    assert rows["photograph", "input"]["peak"] > 100
    assert rows["photograph", "norm projection"]["cosine"] == 1
    assert rows["photograph", "W"]["peak"] < 60
    assert 0.1 < rows["photograph", "W"]["cosine"] < 0.9
    assert rows["photograph", "W"]["relative_norm"] == pytest.approx(1, abs=0.015)


def test_picture_is_a_png_of_readable_size_at_the_printed_path(printed: tuple[Path, str]) -> None:
    path, text = printed
    assert f"picture: {path.resolve()}" in text.splitlines()
    assert path.stat().st_size < 600_000
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert 1500 <= picture.width <= 1800
    assert os.listdir(path.parent) == [path.name]  # no temporary file is left


def test_inputs_are_standardised_latents() -> None:
    photograph, noise = demo_operators.photograph_latent(), demo_operators.noise_latent(0)
    assert photograph.shape == noise.shape == (1, 16, 64, 64)
    assert photograph.dtype == noise.dtype == torch.float32
    assert photograph.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert photograph.double().var(correction=0).item() == pytest.approx(1, abs=1e-6)
    neighbours = (photograph[:, 0] * photograph[:, 1]).mean() / (photograph[:, 0] * photograph[:, 0]).mean()
    assert neighbours > 0.9  # the channels show the same scene


@pytest.mark.slow
def test_seed_decides_the_noise_and_nothing_else(printed: tuple[Path, str], tmp_path: Path) -> None:
    def numbers(text: str) -> dict[tuple[str, str], dict[str, float | None]]:
        return {key: {**row, "milliseconds": None} for key, row in parse_table(text).items()}

    first = numbers(printed[1])
    same = numbers(invoke("--out", tmp_path / "same.png", "--seed", 0).output)
    other = numbers(invoke("--out", tmp_path / "other.png", "--seed", 1).output)
    assert same == first
    for key in first:
        assert (other[key] == first[key]) == (key[0] == "photograph")


def test_default_path_is_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke()
    assert result.exit_code == 0, result.output
    assert os.listdir(tmp_path) == ["noisetilt-demo.png"]


def test_user_settings_of_matplotlib_do_not_reach_the_picture(printed: tuple[Path, str]) -> None:
    import matplotlib

    with matplotlib.rc_context(
        {"figure.facecolor": "black", "axes.grid": True, "text.usetex": True, "savefig.bbox": "tight"}
    ):
        figure = demo_operators.draw(demo_operators.compare(0))
        assert matplotlib.rcParams["text.usetex"]  # the user's settings are restored
        with Image.open(io.BytesIO(demo_operators.png(figure))) as ours, Image.open(printed[0]) as plain:
            assert np.array_equal(np.asarray(ours.convert("RGB")), np.asarray(plain.convert("RGB")))


def assert_one_sentence(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    (line,) = result.output.strip().splitlines()
    for word in ("Error: ", *words):
        assert word in line


def test_missing_directory_is_reported_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_operators, "compare", lambda seed: pytest.fail("worked first"))
    path = tmp_path / "absent" / "picture.png"
    assert_one_sentence(invoke("--out", path), str(path), "there is no directory")
    assert os.listdir(tmp_path) == []


def test_directory_as_destination(tmp_path: Path) -> None:
    assert_one_sentence(invoke("--out", tmp_path), str(tmp_path), "it is a directory")
    assert os.listdir(tmp_path) == []


def test_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill the disk halfway through the write: the old picture stays."""
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def fill_up(self: Path, data: bytes) -> None:
        with open(self, "wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    result = invoke("--out", path)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == f"Error: cannot write {path}: No space left on device"
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_bytes() == b"old"


def test_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = invoke("--out", tmp_path / "file" / "picture.png")
    assert result.exit_code == 1
    assert len(result.output.splitlines()) == 1
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("missing", ["matplotlib", "PIL"])
def test_missing_drawing_package_names_the_extra(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delitem(sys.modules, "noisetilt_kernels.cli.demo_operators")
    monkeypatch.delattr(cli, "demo_operators")
    monkeypatch.setitem(sys.modules, missing, None)
    for name in [name for name in sys.modules if name.startswith(f"{missing}.")]:
        monkeypatch.setitem(sys.modules, name, None)  # submodules too: imported ones would still be found
    result = invoke("--out", tmp_path / "picture.png")
    assert_one_sentence(result, missing, 'pip install "noisetilt-kernels[demo]"')
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_sampling_puts_every_method_side_by_side(tmp_path: Path) -> None:
    """Run the second part with two images of one prompt, in a process that has not replaced it."""
    program = """
import dataclasses, sys
from pathlib import Path
from noisetilt_kernels.cli import demo_sampling
full = demo_sampling.settings
demo_sampling.settings = lambda seed: dataclasses.replace(full(seed), prompts=("a 7",), particles=2)
text, pictures = demo_sampling.run(3, Path(sys.argv[1]))
print(text)
"""
    picture = tmp_path / "demo.png"
    process = subprocess.run(
        [sys.executable, "-c", program, picture], capture_output=True, text=True, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    for method in ("ntrk:operator=w,", "ntrk:operator=identity", "dps", "svdd", "base"):
        # base has another line for the best of 2
        lines = sum(line.startswith(method) for line in process.stdout.splitlines())
        assert lines == 1 + (method == "base")
    assert sorted(os.listdir(tmp_path)) == ["demo-comparison.png", "demo-contact-sheet.png"]
