"""`python -m noisetilt_kernels.profile`: shapes, cases, parts of whiten, counts, limits, table and JSON."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bits import assert_same_bits
from click.testing import CliRunner
from torch.utils.benchmark import Measurement
from torch.utils.benchmark.utils.common import TaskSpec

import noisetilt_kernels as nt
from noisetilt_cli import main as noisetilt
from noisetilt_kernels.backends import BackendError, cpu, reference, triton
from noisetilt_kernels.config import DEFAULT_ALPHA, resolve_preset
from noisetilt_kernels.profile import __main__ as command
from noisetilt_kernels.profile import limits, report, step, timing
from noisetilt_kernels.profile.cases import Case, cases_for
from noisetilt_kernels.profile.counting import Count, count_launches, gpu_kernels
from noisetilt_kernels.profile.inputs import batch_of
from noisetilt_kernels.profile.limits import Costs, limit_of
from noisetilt_kernels.profile.parts import parts_of_whiten
from noisetilt_kernels.profile.shapes import NAMED, parse_shape
from noisetilt_kernels.profile.timing import Timing
from noisetilt_kernels.registration import OPERATORS, served_by

CPU = torch.device("cpu")
PUBLIC = {name for name in OPERATORS if not name.startswith("_")}


# ---- shapes ----


@pytest.mark.parametrize(
    ("text", "sample", "batch"),
    [
        ("4096", (1, 1, 4096), 1),
        ("2x4096", (1, 1, 4096), 2),
        ("16x64x64", (16, 64, 64), 1),
        ("2X16x128x128", (16, 128, 128), 2),
        ("1x16x21x90x160", (336, 90, 160), 1),
        ("flux", (16, 64, 64), 1),
        ("wan", (336, 60, 104), 1),
    ],
)
def test_shapes(text: str, sample: tuple[int, ...], batch: int) -> None:
    shape = parse_shape(text)
    assert (shape.sample[:3], shape.batch) == (sample, batch)
    assert shape.values == batch * shape.sample.size


def test_named_shapes_are_those_of_the_presets() -> None:
    for name, sides in NAMED.items():
        assert nt.preset("auto", sides) == nt.preset(name, sides)


def test_the_description_says_how_four_sides_are_taken() -> None:
    text = parse_shape("16x21x90x160").describe()
    assert text.startswith("16 samples of 21x90x160 (N = 302,400); W: chunks 4, 16; tiles")
    assert parse_shape("1x16x21x90x160").describe().startswith("1 sample of 16x21x90x160 (")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be written as 4096, 16x64x64"),
        ("16x", "got '16x'"),
        ("0x64x64", "got '0x64x64'"),
        ("-4x64x64", "got '-4x64x64'"),
        ("16*64*64", "got '16*64*64'"),
        ("fluxx", "did you mean 'flux'"),
        ("1x2x3x4x5x6", "the shape 1x2x3x4x5x6 must be"),
        ("3x3x3", "divisible by 4 or 16, got 27"),
    ],
)
def test_what_is_no_shape(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        parse_shape(text)
    assert words in str(error.value)


# ---- cases and parts ----


@pytest.mark.parametrize("sides", [(4096,), (2, 1024), (4, 16, 16), (2, 4, 8, 12), (1, 4, 3, 8, 8)])
def test_every_operator_has_a_case(sides: tuple[int, ...]) -> None:
    x = torch.randn(sides)
    cases = cases_for(x)
    assert {case.operator for case in cases} == PUBLIC
    config = nt.preset("auto", sides)
    count = [case.operator for case in cases].count
    assert count("project_2os") == len(config.chunk_sizes)
    assert count("project_tile_stats") == len(config.tile_sizes)
    assert count("butterfly") == len(config.mixing)
    for case in cases:
        result = case.call()
        assert result.numel() * (1 + result.is_complex()) == x.numel()
        assert result.equal(case.call_implementation())


PART_SHAPES = ["4x16x16", "2x4x10x14", "2x1024", "1x4x3x8x8"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("text", PART_SHAPES)
@pytest.mark.parametrize("backend", [cpu, reference, triton], ids=lambda backend: backend.NAME)
def test_parts_in_order_have_the_bits_of_whiten(backend: Any, text: str, dtype: torch.dtype) -> None:
    if backend is triton and (text not in PART_SHAPES[:1] or dtype == torch.float64):
        pytest.skip("Triton's interpreter takes long")
    shape = parse_shape(text)
    x = batch_of("1/k", shape.sample, shape.batch).to(dtype)
    config = resolve_preset("auto", shape.sample, DEFAULT_ALPHA)
    parts = parts_of_whiten(backend, x, config)
    assert len(parts) == 5 + len(config.mixing)
    y = x
    for part in parts:
        before = y.clone()
        result = part.run(y)
        assert_same_bits(y, before)
        y = result
    assert_same_bits(y, backend.whiten(x, config))


def test_parts_have_the_operators_of_whiten() -> None:
    """The work of the parts is that of the whole, by the number of operators and of bytes."""
    shape = parse_shape("2x4x16x16")
    x = batch_of("noise", shape.sample, 2)
    config = resolve_preset("auto", shape.sample, DEFAULT_ALPHA)
    reference.whiten(x, config)
    with Count() as whole:
        reference.whiten(x, config)
    y, operators, moved = x, 0, 0
    for part in parts_of_whiten(reference, x, config):
        with Count() as count:
            y = part.run(y)
        operators, moved = operators + count.operators, moved + count.bytes
    assert (operators, moved) == (whole.operators, whole.bytes)
    assert operators > 1000


def test_inputs() -> None:
    sample = parse_shape("4x32x32").sample
    structured, noise = batch_of("1/k", sample, 2), batch_of("noise", sample, 2)
    assert structured.shape == noise.shape == (2, 4, 32, 32)
    assert structured.dtype == noise.dtype == torch.float32
    assert not structured[0].equal(structured[1]) and not noise[0].equal(noise[1])

    def slow_share(x: torch.Tensor) -> float:
        power = torch.fft.fft2(x).abs().square()
        return float(power[..., :3, :3].sum() / power.sum())

    assert slow_share(structured) > 5 * slow_share(noise)


def test_served_by_chooses_a_backend_and_restores() -> None:
    x = torch.randn(4, 16, 16)
    torch.ops.noisetilt.whiten(x)  # makes the tables
    with Count() as compiled:
        OPERATORS["whiten"].implementation(x)
    with served_by(reference), Count() as defined:
        OPERATORS["whiten"].implementation(x)
    with Count() as after:
        OPERATORS["whiten"].implementation(x)
    assert compiled.operators == after.operators == 1 < defined.operators
    with served_by(nt.backends.__globals__["cuda"]), pytest.raises(BackendError, match="CUDA devices"):
        torch.ops.noisetilt.whiten(x)
    assert torch.ops.noisetilt.whiten(x).shape == x.shape


# ---- counts ----


def test_counts_of_operators_bytes_and_flops() -> None:
    a, b, images, kernels = (
        torch.randn(3, 4),
        torch.randn(4, 5),
        torch.randn(1, 2, 6, 6),
        torch.randn(3, 2, 3, 3),
    )
    with Count() as count:
        a.view(12)
        with suppress(OSError), count.paused():
            a @ b
            raise OSError
        a @ b
    assert (count.operators, count.bytes, count.flops) == (1, 4 * (12 + 20 + 15), 2 * 3 * 4 * 5)
    with Count() as count:
        torch.nn.functional.conv2d(images, kernels)
    assert count.flops == 2 * 16 * 3 * 2 * 9
    query = torch.randn(1, 2, 8, 4, requires_grad=True)
    with Count() as count:
        out = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert count.flops == 2 * 2 * 2 * 8 * 8 * 4
    with Count() as count:
        torch.autograd.grad(out.sum(), query)
    assert count.flops == 5 * 2 * 2 * 8 * 8 * 4


def test_launches_on_the_cpu_are_operators() -> None:
    x = torch.randn(2, 4, 16, 16)
    whole = Case("whiten", "", (x,))
    for backend, least, most in ((cpu, 1, 1), (reference, 1000, 10**5)):
        with served_by(backend):
            whole.call()
            found = count_launches(whole)
            assert least <= found.number <= most
            assert found.bytes >= 2 * x.nbytes and found.kernels == {}


def test_kernels_on_a_gpu_are_counted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu, on_cpu = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
    events = [
        SimpleNamespace(name=n, device_type=d)
        for n, d in (("a", on_gpu), ("b", on_gpu), ("a", on_gpu), ("c", on_cpu))
    ]
    called = []

    class Profiler:
        def __init__(self, activities: Any) -> None:
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> Any:
            return SimpleNamespace(events=lambda: events)

        def __exit__(self, *error: Any) -> None: ...

    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: called.append("synchronize"))
    assert gpu_kernels(lambda: called.append("call")) == {"a": 2, "b": 1}
    assert called == ["call", "synchronize"]


# ---- limits ----

COSTS = Costs(copied_bytes=2000, copy=1e-6, operator=1e-6, calls={"cpu": (10e-6, 1), "reference": (20e-6, 5)})


def test_shares_of_launches_and_memory() -> None:
    assert COSTS.bandwidth == pytest.approx(2e9)
    shares = COSTS.shares("reference", seconds=100e-6, launches=25, moved=100_000)
    assert shares == pytest.approx({"launches": 0.4, "memory": 0.5})
    assert limit_of(shares) == "memory"
    assert COSTS.shares("cpu", 100e-6, 1, 0) == pytest.approx({"launches": 0.1, "memory": 0})
    assert COSTS.shares("reference", 100e-6, 2, 0)["launches"] == pytest.approx(0.2)  # not less than a call


@pytest.mark.parametrize(
    ("launches", "memory", "limit"),
    [(0.49, 0.49, "compute"), (0.5, 0.9, "launches"), (0.1, 0.5, "memory"), (2.0, 3.0, "launches")],
)
def test_limits(launches: float, memory: float, limit: str) -> None:
    assert limit_of({"launches": launches, "memory": memory}) == limit


def test_time_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics of PyTorch's timer are passed on, after a call that is not measured."""
    raw, calls = [5.0, 1.0, 3.0, 2.0, 4.0], []

    class Timer:
        def __init__(self, statement: str, globals: dict[str, Any], num_threads: int) -> None:
            assert calls == ["warm-up"] and num_threads == torch.get_num_threads()

        def adaptive_autorange(self, threshold: float, min_run_time: float, max_run_time: float) -> Any:
            assert (threshold, min_run_time, max_run_time) == (0.1, 0.5, 2.0)
            return Measurement(number_per_run=1, raw_times=raw, task_spec=TaskSpec("", ""))

    monkeypatch.setattr(torch.utils.benchmark, "Timer", Timer)
    assert timing.time_call(lambda: calls.append("warm-up"), 0.5) == (3.0, 2.0, 5)
    del raw[3:], calls[:]
    assert timing.time_call(lambda: calls.append("warm-up"), 0.5) == (3.0, None, 3)
    assert Timing(1.0, 0.2, 9).noisy and not Timing(1.0, 0.05, 9).noisy and not Timing(1.0, None, 2).noisy


# ---- report ----


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object], float], Timing]:
    """Replace the measurements: a call takes 1 ms for each operator of PyTorch in it, at least 1 ms."""

    def time_call(function: Callable[[], object], seconds: float) -> Timing:
        function()
        inner = (
            function.__self__.call_implementation
            if hasattr(function, "__self__") and isinstance(function.__self__, Case)
            else function
        )
        with Count() as count:
            inner()
        return Timing(1e-3 * max(1, count.operators), 0.0, 9)

    for module in (report, limits, step):
        monkeypatch.setattr(module, "time_call", time_call)
    return time_call


def profiled(text: str, dtype: torch.dtype = torch.float32, **more: Any) -> report.Profile:
    return report.profile(parse_shape(text), CPU, dtype, [cpu, reference], **more)


def lines_of(text: str, start: str) -> list[str]:
    """Return the lines of the table whose heading starts with these words."""
    lines = text.splitlines()
    begin = next(k for k, line in enumerate(lines) if line.startswith(start))
    end = next(k for k in range(begin, len(lines)) if not lines[k])
    return lines[begin + 1 : end]


@pytest.mark.parametrize("text", ["4x16x16", "2x1024"])
def test_the_table_has_every_operator_on_every_backend(clock: Any, text: str) -> None:
    result = profiled(text)
    lines = lines_of(report.render(result), "operator ")
    assert len(lines) == 2 * len(result.rows)
    assert {row.operator for row in result.rows} == PUBLIC
    for row, (ours, theirs) in zip(result.rows, zip(lines[::2], lines[1::2], strict=True), strict=True):
        assert ours.startswith(row.name) and theirs.startswith(row.name)
        assert " cpu *" in ours and " reference " in theirs and "*" not in theirs
        assert ours.rstrip().endswith(("launches", "memory", "compute"))
        factor = row.times["reference"] / row.times["cpu"]
        assert f" {factor:.1f} " in theirs and " 1.0 " in ours


def test_parts_sum_to_the_whole(clock: Any) -> None:
    """On a clock that counts operators the parts of the reference take the time of whiten."""
    result = profiled("4x16x16")
    measured = result.rows[0].backends["reference"]
    assert isinstance(measured, report.Measured)
    together = sum(part.timing.median for part in measured.parts)
    assert together == pytest.approx(measured.timing.median, rel=1e-12)
    lines = lines_of(report.render(result), "part of whiten")
    assert lines[-1].startswith("together ") and lines[-1].endswith(" 100%")
    assert [line.split("  ")[0] for line in lines[:-1]] == [part.name for part in measured.parts]
    compiled = result.rows[0].backends["cpu"]
    assert isinstance(compiled, report.Measured)
    times = {part.name: part.timing.median for part in compiled.parts}
    # two operators in place of one, without the copy that takes one
    assert times["project, values"] == times["Fourier"] == pytest.approx(1e-3)


def test_half_precision_has_parts_for_the_conversions(clock: Any) -> None:
    result = profiled("4x16x16", torch.bfloat16)
    measured = result.rows[0].backends["reference"]
    assert isinstance(measured, report.Measured)
    names = [part.name for part in measured.parts]
    assert (names[0], names[-1]) == ("conversion to float32", "conversion to bfloat16")
    assert sum(part.timing.median for part in measured.parts) == pytest.approx(
        measured.timing.median, rel=1e-12
    )


def test_parts_of_half_precision_are_without_a_copy_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts bytes the parts take as long as for float32 samples."""

    def time_call(function: Callable[[], object], seconds: float) -> Timing:
        with Count() as count:
            function()
        return Timing(max(1, count.bytes), 0.0, 9)

    for module in (report, limits):
        monkeypatch.setattr(module, "time_call", time_call)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        measured = profiled("4x16x16", dtype).rows[0].backends["cpu"]
        assert isinstance(measured, report.Measured)
        found.append({part.name: part.timing.median for part in measured.parts})
    assert found[0].items() < found[1].items() and len(found[1]) == len(found[0]) + 2


def test_what_a_backend_fails_at_is_a_row(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other rows are measured, and the reason is the whole message."""
    errors = {
        "whiten": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        "butterfly": ValueError("no power of two: 3"),
    }
    measure = report._measure

    def fails(case: Case, backend: Any, *rest: Any) -> report.Measured:
        if backend is reference and case.operator in errors:
            raise errors[case.operator]
        return measure(case, backend, *rest)

    monkeypatch.setattr(report, "_measure", fails)
    result = profiled("4x16x16")
    text = " ".join(report.render(result).split())
    for row in result.rows:
        assert isinstance(row.backends["cpu"], report.Measured)
        if row.operator in errors:
            assert row.backends["reference"] == str(errors[row.operator])
            assert f"{row.name} on reference: {errors[row.operator]}" in text
        else:
            assert isinstance(row.backends["reference"], report.Measured)
    json.dumps(report.to_json(result))


def test_refused_operators_have_a_reason(clock: Any) -> None:
    result = profiled("4x5x5")  # 50 coefficients, which 16 does not divide
    refused = {row.name: row.backends["cpu"] for row in result.rows if isinstance(row.backends["cpu"], str)}
    assert set(refused) == {"project_wgnc", "project_wgnc_blocks"}
    row = next(row for row in result.rows if row.name == "project_wgnc")
    assert row.best is None and row.times == {}
    text = " ".join(report.render(result).split())
    assert "project_wgnc on cpu: block_size must be at least 2 and divide the 50 complex coefficients" in text
    line = next(line for line in report.render(result).splitlines() if line.startswith("project_wgnc "))
    assert line.split() == ["project_wgnc", "cpu", "-"]
    found = report.to_json(result)["operators"]
    assert all("refused" in one["backends"]["cpu"] for one in found if one["operator"] in refused)


def test_json(clock: Any) -> None:
    result = profiled("2x4x16x16", step=step.step_of_user(500))
    found = json.loads(json.dumps(command.document([result], CPU), allow_nan=False))
    assert set(found) == {"versions", "cpu", "threads", "gpu", "profiles"}
    (one,) = found["profiles"]
    assert (one["shape"], one["batch"], one["sample"]) == ([2, 4, 16, 16], 2, [4, 16, 16])
    assert (one["dtype"], one["input"], one["device"]) == ("float32", "1/k", "cpu")
    assert one["whitening"].startswith("chunks 4, 16; tiles 4x4")
    assert one["step"] == {
        "seconds": 0.5,
        "measured": True,
        "words": "step: 500 ms, measured by you (--step-ms)",
    }
    assert set(one["costs"]) == {"copy", "pytorch_operator_seconds", "calls"}
    assert {row["operator"] for row in one["operators"]} == PUBLIC
    for row in one["operators"]:
        assert set(row) == {"operator", "name", "best", "backends"} and set(row["backends"]) == {
            "cpu",
            "reference",
        }
        for measured in row["backends"].values():
            assert set(measured) == {
                *("median", "iqr", "measurements", "launches", "moved_bytes", "kernels", "shares", "limit"),
                *("share_of_step", "parts"),
            }
            assert measured["share_of_step"] == pytest.approx(measured["median"] / 0.5)
            assert set(measured["shares"]) == {"launches", "memory"}
            assert bool(measured["parts"]) == (row["operator"] == "whiten")
    part = one["operators"][0]["backends"]["cpu"]["parts"][0]
    assert set(part) == {"name", "median", "iqr", "measurements"}


def test_noise_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_call(function: Callable[[], object], seconds: float) -> Timing:
        function()
        return Timing(1e-3, 5e-4, 9)

    for module in (report, limits):
        monkeypatch.setattr(module, "time_call", time_call)
    text = report.render(report.profile(parse_shape("4x16x16"), CPU, torch.float32, [cpu]))
    assert " 50%! " in text and " medians have an interquartile range above 10% (marked !)" in text


# ---- step of a model ----


def test_a_step_is_counted_from_the_configuration() -> None:
    found = step.count_step("digits", torch.float32)
    assert found.shape.sides == (4, 16, 16)
    from noisetilt_kernels.models import FluxFlow, load_pipeline

    pipe = load_pipeline("digits", dtype=torch.float32)
    model = FluxFlow(pipe)
    weights = [pipe.transformer, pipe.vae]
    assert found.weight_bytes == sum(p.nbytes for part in weights for p in part.parameters())
    x = torch.randn(1, *model.shape, requires_grad=True)
    model.velocity(x, 0.5, ["a handwritten seven"])  # encodes the prompt
    with Count() as forward:
        velocity = model.velocity(x, 0.5, ["a handwritten seven"])
    with Count() as backward:
        torch.autograd.grad(velocity.sum(), x)
    assert 0 < forward.flops + backward.flops < found.flops < 2 * (forward.flops + backward.flops)


@pytest.mark.slow
def test_a_step_of_flux_has_the_flops_of_its_layers() -> None:
    found = step.count_step("flux", torch.bfloat16)
    assert found.shape.sides == (16, 128, 128)
    assert found.weight_bytes == pytest.approx(2 * 11.9e9, rel=0.01)
    # 2 FLOPs for each weight and token, but for those of the modulations; attention over 4,608 tokens
    assert 100e12 < found.flops < 2 * 2 * 11.9e9 * 4608 + 57 * 7 * 2 * 4608**2 * 3072


def test_the_bound_of_a_step(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "_LARGE_COPY", 1000)
    counts = step.ModelStep("mine", parse_shape("4x16x16"), flops=10**15, weight_bytes=10, parts="denoiser")
    one, four = (step.bound_of_step(counts, batch, torch.float32, CPU) for batch in (1, 4))
    speed = 2 * 2048**3 / 1e-3
    assert one.seconds == pytest.approx(1e15 / speed) and four.seconds == pytest.approx(4e15 / speed)
    assert not one.measured and one.words.startswith(
        "step: counted, not measured. A forward and a backward of mine"
    )
    assert "1e+03 TFLOP" in one.words and "17.2 TFLOP/s" in one.words and "upper bounds" in one.words
    heavy = step.ModelStep("mine", counts.shape, flops=1, weight_bytes=10**9, parts="denoiser")
    assert step.bound_of_step(heavy, 1, torch.float32, CPU).seconds == pytest.approx(2e9 / (2000 / 1e-3))


# ---- commands ----


def run(*arguments: str) -> Any:
    return CliRunner().invoke(command.main, arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["16x64"], None),
        (["3x3x3"], "divisible by 4 or 16, got 27"),
        (["nonsense"], "must be written as"),
        ([], "SHAPE is missing"),
        (["flux", "16x"], "got '16x'"),
        (["flux", "--dtype", "int8"], "'int8' is not one of"),
        (["flux", "--device", "cuda:7"], "--device cuda:7 cannot be used here"),
        (
            ["flux", "--backend", "cuda"],
            "--backend cuda does not serve cpu; backends that do: cpu, reference",
        ),
        (["flux", "--step-ms", "0"], "not in the range"),
        (["flux", "--json", "/nowhere/file.json"], "there is no folder '/nowhere'"),
        (["flux", "--model", "digits"], "--model digits has latents 4x16x16, got SHAPE 16x64x64"),
        (["--model", "/nowhere"], "there is no folder '/nowhere'"),
    ],
)
def test_mistakes_are_found_before_any_measurement(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str | None
) -> None:
    def no_measurement(*args: Any, **named: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(command, "profile", no_measurement)
    result = run(*arguments)
    if words is None:
        assert isinstance(result.exception, AssertionError)
        return
    assert result.exit_code in (1, 2) and words in " ".join(result.output.split()), result.output


def test_command(clock: Any, tmp_path: Path) -> None:
    result = run(
        "4x16x16", "1024", "--backend", "cpu", "--step-ms", "20", "--json", str(tmp_path / "found.json")
    )
    assert result.exit_code == 0, result.output
    threads = torch.get_num_threads()
    words = "1 thread" if threads == 1 else f"{threads} threads"
    assert result.output.startswith("cpu: ") and f"; {words}; torch {torch.__version__}" in result.output
    assert "4x16x16, float32, 1/k input, cpu" in result.output
    assert "1024, float32, 1/k input, cpu" in result.output
    assert "reference" not in lines_of(result.output, "operator ")[0]
    header = next(line for line in result.output.splitlines() if line.startswith("operator "))
    assert header.endswith("of step")
    whiten = lines_of(result.output, "operator ")[0]
    assert whiten.startswith("whiten") and whiten.endswith(" 5.0%")  # 1 ms of 20
    assert "step: 20 ms, measured by you (--step-ms)" in result.output
    found = json.loads((tmp_path / "found.json").read_text())
    assert [one["shape"] for one in found["profiles"]] == [[4, 16, 16], [1024]]


def test_the_shape_of_a_model_is_that_of_its_latents(clock: Any) -> None:
    result = run("--model", "digits", "--backend", "cpu")
    assert result.exit_code == 0, result.output
    assert "4x16x16, float32, 1/k input, cpu" in result.output
    assert "A forward and a backward of digits (denoiser and the VAE's decoder)" in " ".join(
        result.output.split()
    )


def test_bench_uses_the_same_calls(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from noisetilt_kernels.cli import bench

    monkeypatch.setattr(bench, "time_call", clock)
    result = CliRunner().invoke(noisetilt, ["bench", "--shape", "4x16x16"])
    assert result.exit_code == 0, result.output
    heading, columns, *lines = result.output.splitlines()
    assert heading.startswith("4x16x16 Gaussian noise, float32, cpu: cpu, C++ kernels")
    assert columns.split() == ["operator", "ms", "reference,", "ms", "ratio"]
    assert [line.split()[:2] for line in lines] == [[name, "1.000"] for name in bench.OPERATORS]
    assert all(float(line.split()[2]) > 10 for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["16x166x166", "4096", "1x16x21x90x160"])
def test_large_and_odd_shapes_are_measured(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "SECONDS", 1e-3)
    result = run(text, "--backend", "cpu")
    assert result.exit_code == 0, result.output
    assert len(lines_of(result.output, "part of whiten")) == 8
    share = float(lines_of(result.output, "part of whiten")[-1].split()[-1].rstrip("%"))
    assert 40 < share < 250  # of whiten; other processes may run
