"""Confidence tables: against scipy.stats and mpmath, and their cache."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mpmath
import numpy as np
import platformdirs
import pytest
import scipy.stats
import torch
from bits import assert_same_bits
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import noisetilt_kernels as nt
from noisetilt_kernels import python_ref
from noisetilt_kernels.backends import table_cache, tables
from noisetilt_kernels.backends.tables import cached_table
from noisetilt_kernels.config import LEAST_ALPHA, MOST_ALPHA

SIZES = [(1, 1), (1, 4), (7, 1), (10, 3), (64, 4), (100, 16), (1024, 4), (10_000, 2)]


# ---- values ----


@pytest.mark.parametrize("alpha", [1e-3, 0.05, 0.9])
@pytest.mark.parametrize(
    "reference", [nt.Normal(), nt.ChiSquare(1), nt.ChiSquare(15), nt.ChiSquare(255)], ids=repr
)
@pytest.mark.parametrize(("m", "d"), SIZES)
def test_against_scipy_stats(m: int, d: int, reference: nt.Normal | nt.ChiSquare, alpha: float) -> None:
    lower, upper = python_ref.confidence_table(m, d, alpha, reference)
    distribution = scipy.stats.norm() if reference == nt.Normal() else scipy.stats.chi2(reference.df)
    r, j = np.arange(1, m + 1)[:, None], np.arange(1, d + 1)
    below = scipy.stats.beta.ppf(scipy.stats.beta.ppf(alpha / 2, r, m - r + 1), j, d - j + 1)
    np.testing.assert_allclose(lower, distribution.ppf(below), rtol=1e-8, atol=1e-10)
    # the probability above the upper bound: 1 - I^-1(1-q; a, b) = I^-1(q; b, a), twice
    above = scipy.stats.beta.ppf(scipy.stats.beta.ppf(alpha / 2, m - r + 1, r), d - j + 1, j)
    np.testing.assert_allclose(upper, distribution.isf(above), rtol=1e-8, atol=1e-10)
    if m * d < 500:  # where 1-q still has its digits, literally as defined
        q = scipy.stats.beta.ppf(1 - alpha / 2, r, m - r + 1)
        p = scipy.stats.beta.ppf(q, j, d - j + 1)
        np.testing.assert_allclose(upper, distribution.ppf(p), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("m", "d"), [*SIZES, (20_000, 4)])
def test_normal_tables_are_symmetric_to_the_bit(m: int, d: int) -> None:
    lower, upper = nt.confidence_table(m, d)
    assert_same_bits(lower, -upper.flip(0, 1))


@pytest.mark.parametrize("reference", [nt.Normal(), nt.ChiSquare(1), nt.ChiSquare(63)], ids=repr)
@pytest.mark.parametrize(("m", "d"), [*SIZES, (16_384, 4), (4_096, 16)])
def test_tables_increase_in_both_ranks(m: int, d: int, reference: nt.Normal | nt.ChiSquare) -> None:
    for dtype in (torch.float64, torch.float32):
        lower, upper = (table.to(dtype) for table in nt.confidence_table(m, d, reference=reference))
        assert lower.shape == upper.shape == (m, d)
        assert bool((lower < upper).all())
        for table in (lower, upper):
            assert bool(table.isfinite().all())
            assert bool((table.diff(dim=0) >= 0).all())
            assert bool((table.diff(dim=1) >= 0).all())


@pytest.mark.parametrize(
    ("m", "d", "r", "j"),
    [(131_072, 4, 1, 1), (131_072, 4, 131_072, 4), (131_072, 4, 131_071, 1), (131_072, 16, 131_072, 16)],
)
def test_extreme_entries_against_mpmath(m: int, d: int, r: int, j: int) -> None:
    """A bound is right if its probability by the definition, computed with 60 digits, is alpha/2."""
    lower, upper = nt.confidence_table(m, d)
    with mpmath.workdps(60):
        for table, lower_tail in ((lower, True), (upper, False)):
            bound = mpmath.mpf(float(table[r - 1, j - 1]))
            p = mpmath.ncdf(bound)  # probability that one value is below the bound
            q = sum(
                mpmath.binomial(d, i) * p**i * (1 - p) ** (d - i) for i in range(j, d + 1)
            )  # at least j of D
            tail = _beta_cdf(q, r, m - r + 1) if lower_tail else _beta_cdf(1 - q, m - r + 1, r)
            assert float(tail) == pytest.approx(python_ref.DEFAULT_ALPHA / 2, rel=1e-7), (r, j, lower_tail)


def _beta_cdf(x: mpmath.mpf, a: int, b: int) -> mpmath.mpf:
    """Beta distribution I_x(a, b) for integers: a binomial sum of min(a, b) terms."""
    n = a + b - 1

    def probability(count: int) -> mpmath.mpf:
        return mpmath.binomial(n, count) * x**count * (1 - x) ** (n - count)

    if b <= a:
        return mpmath.fsum(probability(count) for count in range(a, n + 1))
    return 1 - mpmath.fsum(probability(count) for count in range(a))


@pytest.mark.parametrize("bad", [0, -3, 2**20 + 1])
def test_chi_square_needs_a_positive_number(bad: int) -> None:
    with pytest.raises(ValueError, match="ChiSquare: df"):
        nt.ChiSquare(bad)


@pytest.mark.parametrize("bad", [1.5, 1.0, float("nan"), float("inf"), "3", None])
def test_chi_square_needs_an_integer(bad: object) -> None:
    with pytest.raises(TypeError, match="ChiSquare: df must be an integer"):
        nt.ChiSquare(bad)


@pytest.mark.parametrize("reference", [nt.Normal(), nt.ChiSquare(1), nt.ChiSquare(15)], ids=repr)
@pytest.mark.parametrize("alpha", [LEAST_ALPHA, 1e-50, 0.9999, MOST_ALPHA])
@pytest.mark.parametrize(("m", "d"), [*SIZES, (16_384, 4), (4_096, 16)])
def test_every_alpha_in_the_range_has_a_table(
    m: int, d: int, alpha: float, reference: nt.Normal | nt.ChiSquare
) -> None:
    lower, upper = nt.confidence_table(m, d, alpha, reference)
    assert bool((lower.isfinite() & upper.isfinite() & (lower <= upper)).all())


def test_modes_of_the_caller_change_no_table() -> None:
    """A long table is filled by threads, which have modes of their own."""
    expected = python_ref.confidence_table(9000, 2)
    with torch.inference_mode(), torch.device("meta"):
        table = python_ref.confidence_table(9000, 2)
        factors = python_ref.twiddle_factors(96, torch.float64)
    for bound, other in zip(table, expected, strict=True):
        assert_same_bits(bound, other)
    assert factors.device.type == "cpu" and not factors.is_inference()


def test_largest_chi_square() -> None:
    """The quantiles of many degrees of freedom are those of the normal distribution and a known series."""
    df = 2**20
    normal = nt.confidence_table(64, 4)
    for bound, expected in zip(nt.confidence_table(64, 4, reference=nt.ChiSquare(df)), normal, strict=True):
        series = expected + 2 / 3 * (expected.square() - 1) / (2 * df) ** 0.5
        torch.testing.assert_close((bound - df) / (2 * df) ** 0.5, series, rtol=0, atol=1e-4)


@pytest.mark.parametrize("alpha", [1e-220, 1 - 2**-53])
def test_a_table_with_nan_or_crossed_bounds_is_an_error(fresh_cache: Path, alpha: float) -> None:
    """The operators refuse these alphas earlier. If limits do not suffice, nothing wrong is kept."""
    with pytest.raises(ValueError, match=r"have no table in float64 at alpha .* for Normal\(\)"):
        cached_table(1024, 4, alpha, nt.Normal(), torch.float32, torch.device("cpu"))
    assert not fresh_cache.exists()


# ---- cache ----


def make(dtype: torch.dtype = torch.float64, num_chunks: int = 50) -> tuple[Tensor, Tensor]:
    """Return a table with an empty memory cache."""
    cached_table.cache_clear()
    table = cached_table(num_chunks, 4, python_ref.DEFAULT_ALPHA, nt.Normal(), dtype, torch.device("cpu"))
    return table.lower, table.upper


def check(table: tuple[Tensor, Tensor]) -> None:
    for bound, expected in zip(table, python_ref.confidence_table(50, 4), strict=True):
        assert_same_bits(bound, expected)


def files_in(directory: Path) -> list[Path]:
    return sorted(directory.iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_cached_table_has_the_bits_of_a_computed_one(
    fresh_cache: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = make(dtype)
    assert [path.suffix for path in files_in(fresh_cache)] == [".safetensors"]

    def fail(*args: object) -> None:
        raise AssertionError("the table was computed again")

    monkeypatch.setattr(tables, "compute_table", fail)
    for warm, table in zip(make(dtype), cold, strict=True):
        assert_same_bits(warm, table)
    assert make(dtype)[0].stride() == cold[0].stride()


def test_the_key_depends_on_every_argument(fresh_cache: Path) -> None:
    arguments = [
        (m, d, alpha, reference, dtype)
        for m, d in ((4, 6), (6, 4))
        for alpha in (1e-3, 1.0001e-3)
        for reference in (nt.Normal(), nt.ChiSquare(3), nt.ChiSquare(4))
        for dtype in (torch.float32, torch.float64)
    ]
    for m, d, alpha, reference, dtype in arguments:
        cached_table(m, d, alpha, reference, dtype, torch.device("cpu"))
    assert len(files_in(fresh_cache)) == len(arguments)
    cached_table.cache_clear()
    for m, d, alpha, reference, dtype in arguments:
        lower, upper, _ = cached_table(m, d, alpha, reference, dtype, torch.device("cpu"))
        for table, expected in zip(
            (lower, upper), python_ref.confidence_table(m, d, alpha, reference), strict=True
        ):
            assert_same_bits(table, expected.to(dtype))


def _flip(path: Path, offset: int, bit: int = 3) -> None:
    """Flip one bit of a file. A negative offset counts from its end."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def _rewrite(path: Path, change: Callable[[Tensor], Tensor], **changed: str) -> None:
    """Replace the bounds of a file, or entries of its metadata. The rest stays."""
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **changed}
        bounds = {name: change(file.get_tensor(name)).clone() for name in ("lower", "upper")}
    save_file(bounds, path, metadata=metadata)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _foreign(path: Path) -> None:
    table = torch.zeros(4, 50, dtype=torch.float64)
    save_file({"lower": table, "upper": table.clone()}, path, metadata={"key": "another", "monotone": "True"})


def _without_metadata(path: Path) -> None:
    save_file({"lower": torch.zeros(3)}, path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate,
    "truncated in its header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "empty": lambda path: path.write_bytes(b""),
    "random bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "foreign": _foreign,
    "without metadata": _without_metadata,
    "another shape": lambda path: _rewrite(path, lambda bound: bound[:, :-1]),
    "transposed": lambda path: _rewrite(path, lambda bound: bound.reshape(bound.shape[::-1])),
    "another dtype": lambda path: _rewrite(path, Tensor.float),
    "bfloat16": lambda path: _rewrite(path, Tensor.bfloat16),
    "other bounds": lambda path: _rewrite(path, lambda bound: bound * 1.01),
    "not monotone": lambda path: _rewrite(path, lambda bound: bound, monotone="False"),
    "no checksum": lambda path: _rewrite(path, lambda bound: bound, checksum=""),
    "a bit of the last bound": lambda path: _flip(path, -1),
    "a bit of a lower bound": lambda path: _flip(path, -50 * 4 * 8 - 100),
    "a bit of the header": lambda path: _flip(path, 12),
    "a bit of the header's length": lambda path: _flip(path, 7, 6),
    "a pipe": _fifo,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_detected_and_rebuilt(
    damage: str, fresh_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make()
    (path,) = files_in(fresh_cache)
    DAMAGE[damage](path)
    check(make())
    assert re.search(r"making the cached table .* again: ", caplog.text)
    assert files_in(fresh_cache) == [path]
    caplog.clear()
    check(make())
    assert caplog.text == "", "the file was not replaced"


@pytest.mark.slow
def test_no_flipped_bit_changes_a_table(fresh_cache: Path) -> None:
    """Flip one bit of every byte of a file in turn."""
    make()
    (path,) = files_in(fresh_cache)
    whole = path.read_bytes()
    for offset in range(len(whole)):
        path.write_bytes(whole)
        _flip(path, offset, offset % 8)
        cached_table.cache_clear()
        check(make())


def test_the_cache_has_a_largest_size(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that were not used for the longest time are removed first."""
    for m in (50, 51, 52):
        make(num_chunks=m)
    by_size = {m: path for m in (50, 51, 52) for path in files_in(fresh_cache) if f"_{m}x4" in path.name}
    for age, m in ((30, 50), (20, 51), (10, 52)):
        os.utime(by_size[m], (time.time() - age,) * 2)
    make(num_chunks=50)  # used now
    assert by_size[50].stat().st_mtime > by_size[52].stat().st_mtime
    room = sum(path.stat().st_size for path in by_size.values())
    monkeypatch.setattr(table_cache, "MOST_BYTES", room)
    make(num_chunks=49)
    assert not by_size[51].exists()
    assert by_size[50].exists() and by_size[52].exists()
    assert len(files_in(fresh_cache)) == 3
    assert sum(path.stat().st_size for path in files_in(fresh_cache)) <= room


def test_a_table_above_the_largest_size_is_not_kept(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(num_chunks=10)
    monkeypatch.setattr(table_cache, "MOST_BYTES", 2000)
    check(make())
    assert len(files_in(fresh_cache)) == 1


def test_temporary_files_of_killed_processes_are_removed(fresh_cache: Path) -> None:
    fresh_cache.mkdir(parents=True)
    old, new = fresh_cache / "old.tmp", fresh_cache / "new.tmp"
    for path in (old, new):
        path.write_bytes(b"half of a table")
    os.utime(old, (time.time() - 7200,) * 2)
    make()
    assert not old.exists() and new.exists()


def test_without_a_home_directory_tables_are_kept_in_memory() -> None:
    """Run without HOME, as a user who is not in the list of users."""
    code = """
import pwd
def absent(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = absent
import torch, noisetilt_kernels as nt
from noisetilt_kernels.backends import table_cache
from noisetilt_kernels.cli.doctor import examine, render
assert table_cache.directory() is None
assert nt.whiten(torch.ones(64)).isfinite().all()
report = examine()
assert report["table_cache"]["directory"] is None
print(render(report))
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_CACHE_HOME")
    }
    environment["PYTHONPATH"] = str(Path(nt.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "in memory only: there is no home directory" in done.stdout


@pytest.mark.parametrize(
    "variables",
    [
        {"XDG_CACHE_HOME": "/somewhere/else"},
        {"XDG_CACHE_HOME": "/somewhere/else/", "HOME": "/home/someone"},
        {"XDG_CACHE_HOME": "relative", "HOME": "/home/someone"},
        {"XDG_CACHE_HOME": "~/.cache", "HOME": "/home/someone"},
        {"XDG_CACHE_HOME": "", "HOME": "/home/someone"},
        {"HOME": "/home/someone/"},
        {},
    ],
    ids=str,
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other places for caches")
def test_the_directory_is_the_usual_one(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    usual = platformdirs.user_cache_dir("noisetilt_kernels", appauthor=False)
    assert table_cache.directory() == Path(usual)


def test_a_relative_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "relative")
    monkeypatch.delenv("XDG_CACHE_HOME")
    check(make())
    assert table_cache.directory() is None
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_place_of_the_file_is_no_error(fresh_cache: Path) -> None:
    make()
    (path,) = files_in(fresh_cache)
    path.unlink()
    path.mkdir()
    check(make())
    assert files_in(fresh_cache) == [path], "a temporary file was left"


def test_an_unwritable_directory_is_no_error(fresh_cache: Path) -> None:
    """Even root cannot create a directory below a regular file."""
    fresh_cache.parent.write_text("not a directory")
    check(make())
    check(make())


def test_a_write_that_fails_leaves_nothing(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", disk_full)
        check(make())
    assert files_in(fresh_cache) == []
    check(make())
    assert [path.suffix for path in files_in(fresh_cache)] == [".safetensors"]


def test_returned_tables_are_copies(fresh_cache: Path) -> None:
    lower, upper = nt.confidence_table(50, 4)
    lower.zero_()
    upper.zero_()
    check(nt.confidence_table(50, 4))


@pytest.mark.slow
def test_processes_may_fill_the_cache_at_once(fresh_cache: Path) -> None:
    code = "import noisetilt_kernels as nt; [nt.confidence_table(m, 4) for m in range(1, 30)]"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert errors == ""
    assert {path.suffix for path in files_in(fresh_cache)} == {".safetensors"}
    assert len(files_in(fresh_cache)) == 29
