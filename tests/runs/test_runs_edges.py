"""Edge cases of runs and commands: bad folders, bad options, and settings that the options reach."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_clip
import tiny_qwen
import torch
from click.testing import CliRunner
from gaussian_flows import LatentFlow, brightness, left_half
from PIL import Image
from tiny_flux import tiny_flux
from torch import Tensor

from noisetilt_cli import main
from noisetilt_kernels.models import Family
from noisetilt_kernels.rewards import RewardSpec, WeightedSum, parse_rewards
from noisetilt_kernels.rewards.registry import Entry
from noisetilt_kernels.runs import comparison, loading
from noisetilt_kernels.runs import execute as execution
from noisetilt_kernels.runs.comparison_folder import Comparison
from noisetilt_kernels.runs.contact_sheet import contact_sheet
from noisetilt_kernels.runs.execute import execute
from noisetilt_kernels.runs.files import write_whole
from noisetilt_kernels.runs.folder import Outcome, Planned, RunFolder, read_plan
from noisetilt_kernels.runs.settings import ComputeOptions, Settings
from noisetilt_kernels.sampling.methods import Method, parse_method

COMPUTE = ComputeOptions()
SETTINGS = Settings(
    "none", ("bright", "dark"), Method("base", {"steps": 2}), parse_rewards("brightness=2"), particles=2
)


def save(folder: RunFolder, particle: int, reward: float = 0.5) -> None:
    folder.save_particle(Outcome(particle, "a", reward, {}), torch.zeros(2, 4, 4), torch.zeros(3, 4, 4))


def run(
    path: Path, reward: WeightedSum, settings: Settings = SETTINGS, compute: ComputeOptions = COMPUTE
) -> dict:
    return execute(settings, compute, RunFolder(path, settings.to_json()), LatentFlow(), reward, {})


def test_a_cut_line_is_not_joined_to_the_next(tmp_path: Path) -> None:
    save(RunFolder(tmp_path, {}), 0)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"particle": 1, "prom')
    save(RunFolder(tmp_path, {}, resume=True), 1)
    assert [
        json.loads(line)["particle"] for line in (tmp_path / "results.jsonl").read_text().splitlines()
    ] == [0, 1]


def test_resuming_leaves_run_json_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(RunFolder(tmp_path, {}), 0)
    before = (tmp_path / "run.json").read_bytes()
    monkeypatch.setattr("noisetilt_kernels.runs.folder._made_with", lambda: {"started": "later"})
    RunFolder(tmp_path, {}, resume=True)
    assert (tmp_path / "run.json").read_bytes() == before


def test_rewards_that_are_not_finite_are_null_and_not_the_best(tmp_path: Path) -> None:
    def reward(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([next(values) for _ in prompts])

    settings = replace(SETTINGS, non_finite="plain_noise")
    rewards = WeightedSum({"brightness": (1.0, reward)})
    # for each micro-batch: two values for the run, then one for the parts of each particle
    values = iter([math.inf, 0.25, math.inf, 0.25, math.nan, 0.5, math.nan, 0.5])
    summary = run(tmp_path, rewards, settings, ComputeOptions(micro_batch=2))
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in lines] == [None, 0.25, None, 0.5]
    assert summary["best"] == [1, 3] and summary["reward"]["count"] == 2
    again = RunFolder(tmp_path, settings.to_json(), resume=True)
    assert {**execution.summarise(settings, again), "peak_memory": None} == summary


def test_the_reward_is_the_weighted_sum_and_judged_without_a_graph(tmp_path: Path) -> None:
    batches, graphs = [], []

    def watched(pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        batches.append(len(pictures))
        graphs.append(torch.is_grad_enabled())
        return brightness(pictures, prompts)

    run(tmp_path, WeightedSum({"brightness": (2.0, watched)}), compute=ComputeOptions(micro_batch=4))
    for line in (tmp_path / "results.jsonl").read_text().splitlines():
        one = json.loads(line)
        assert one["reward"] == pytest.approx(2 * one["parts"]["brightness"])
    assert batches == [4, 1, 1, 1, 1] and not any(graphs)


def test_the_sheet_frames_the_best_and_opens_one_file_at_a_time(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    files = [tmp_path / f"{index}.png" for index in range(200)]
    for file in files:
        Image.new("RGB", (4, 4), "black").save(file)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, limits[1]))
    try:
        sheet = contact_sheet(
            [files], ["a\nlong " * 5000], None, [[index == 1 for index in range(200)]], cell=(8, 8)
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    reds = [
        x for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == (179, 38, 30)
    ]
    assert min(reds) >= 6 + 14 - 3 and max(reds) <= 6 + 14 + 8 + 2
    assert sheet.width <= 200 * 14 + 12
    assert sheet.getpixel((6 + 7, 6 + 22 + 7)) == (0, 0, 0)  # enlarged to 8 pixels


@pytest.mark.parametrize(
    "text", ["ntrk:rho=2", "ntrk:rho=abc", "base:steps=2.5", "wgnc:lr=-1", "ntrk:operator=../x"]
)
def test_options_are_checked_before_any_work(text: str) -> None:
    with pytest.raises(ValueError, match=rf"^{text.partition(':')[0]}: "):
        parse_method(text).check()


@pytest.mark.parametrize(
    "text", ["base", "ntrk:rho=1,operator=norm", "svdd:candidates=2", "dps:strength=-1", "wgnc"]
)
def test_good_options_pass(text: str) -> None:
    parse_method(text).check()


def compared(path: Path, monkeypatch: pytest.MonkeyPatch, methods: list[str], **options: object) -> list:
    reward = WeightedSum({"brightness": (1.0, brightness), "symmetry": (0.5, left_half)})
    monkeypatch.setattr(comparison, "load_rewards", lambda *_: (reward, {}))
    monkeypatch.setattr(comparison, "load_model", lambda *_: LatentFlow())
    settings = replace(SETTINGS, model="digits", rewards=parse_rewards("brightness,symmetry=0.5"))
    return comparison.compare(settings, Comparison(tuple(methods)), ComputeOptions(), path, **options)


def test_a_method_written_in_two_ways_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="methods must differ"):
        compared(tmp_path, monkeypatch, ["ntrk:rho=1,steps=2", "ntrk:steps=2,rho=1.0"])
    with pytest.raises(ValueError, match=r"rho must be in \[0, 1\]"):
        compared(tmp_path, monkeypatch, ["base:steps=2", "ntrk:rho=2"])
    assert not any(tmp_path.iterdir())


def test_a_comparison_resumes_and_shows_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ["base:steps=2", "ntrk:steps=2"]
    sheets = []
    original = comparison.contact_sheet
    monkeypatch.setattr(
        comparison,
        "contact_sheet",
        lambda rows, *rest, **kw: sheets.append(rows) or original(rows, *rest, **kw),
    )
    rows = compared(tmp_path, monkeypatch, methods)
    assert list(rows[0].scores) == ["reward", "brightness", "symmetry"]
    assert [file.name for file in sheets[0][0]] == ["0000.png", "0002.png"]
    with pytest.raises(Exception, match="continue it with --resume"):
        compared(tmp_path, monkeypatch, methods)
    results = tmp_path / "base-steps2" / "results.jsonl"
    _first, *others = results.read_text().splitlines(keepends=True)
    results.write_text("".join(others))  # particle 0 is missing, so it is sampled last
    again = compared(tmp_path, monkeypatch, methods, resume=True)
    assert [replace(row, seconds=0) for row in again] == [replace(row, seconds=0) for row in rows]


def test_a_comparison_goes_on_without_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    on_gpu = SimpleNamespace(device=lambda name: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(comparison, "torch", on_gpu)
    monkeypatch.setattr(comparison, "describe", lambda *_: json.loads("no plan"))
    assert len(compared(tmp_path, monkeypatch, ["base:steps=2"])) == 1
    assert "the memory was not planned: JSONDecodeError" in caplog.text
    assert read_plan(tmp_path / "base-steps2") == Planned()


@pytest.mark.parametrize("order", [1, -1])
def test_a_one_step_flow_serves_both_kinds_of_methods(tmp_path: Path, order: int) -> None:
    tiny_flux(False).save_pretrained(tmp_path / "flux")
    methods = [f"--method={method}" for method in ("wgnc:iterations=1", "ntrk:steps=2")[::order]]
    arguments = [
        "compare",
        "--model",
        tmp_path / "flux",
        "--prompt",
        "a cat",
        "--reward",
        "brightness",
        *methods,
    ]
    result = invoke(*arguments, "--seeds", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        "wgnc-iterations1",
        "ntrk-steps2",
    }


def test_model_and_rewards_are_loaded_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr(
        loading, "load_pipeline", lambda source, **given: asked.update(source=source, **given)
    )

    class Adapter:
        facts = SimpleNamespace(name="none", videos=False)

        def __init__(self, pipe: object, height: int, width: int, guidance_scale: float) -> None:
            asked.update(height=height, width=width, scale=guidance_scale)

    family = Family(flow=Adapter)
    monkeypatch.setattr(loading, "family_of", lambda pipe: family)
    monkeypatch.setattr(loading, "family_at", lambda source: family)

    def spec(name: str) -> RewardSpec:
        def load(argument: str | None, source: str, device: object) -> object:
            asked[name] = {"argument": argument, "source": source, "device": device}
            return brightness

        return RewardSpec(name, Entry("", load), "blue", source=f"/{name}")

    settings = replace(
        SETTINGS,
        model="m",
        lora=("l",),
        dtype="bfloat16",
        height=32,
        width=48,
        guidance_scale=2.0,
        rewards=(spec("steering"),),
        held_out=(spec("judge"),),
    )
    compute = ComputeOptions("cuda:1", offload=True)
    loading.load_model(settings, compute)
    assert asked == {
        "source": "m",
        "dtype": torch.bfloat16,
        "device": "cuda:1",
        "offload": True,
        "denoiser": None,
        "lora": ("l",),
        "variant": None,
        "quantize": None,
        "height": 32,
        "width": 48,
        "scale": 2.0,
    }
    _, held_out = loading.load_rewards(settings, compute)
    assert list(held_out) == ["judge"]
    for name in ("steering", "judge"):
        assert asked[name] == {"argument": "blue", "source": f"/{name}", "device": "cuda:1"}


def test_a_foreign_run_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"mine": 1}')
    for resume in (False, True):
        with pytest.raises(Exception, match="was not written by a run"):
            RunFolder(tmp_path, {}, resume=resume)
    assert (tmp_path / "run.json").read_text() == '{"mine": 1}'


def test_a_failure_before_run_json_leaves_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(OSError):
            RunFolder(tmp_path / "run", {})
    save(RunFolder(tmp_path / "run", {}), 0)


def test_a_lost_image_is_missing_and_non_finite_may_change(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {"non_finite": "raise"})
    for particle in range(2):
        save(folder, particle)
    folder.image_file(0).unlink()
    assert RunFolder(tmp_path, {"non_finite": "plain_noise"}, resume=True).missing_batches(2, 1) == [
        range(0, 1)
    ]


def test_files_are_complete_or_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "a", b"old")
    written = Path.write_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", lambda path, data: (written(path, data[:1]), 1 / 0))
        with pytest.raises(ZeroDivisionError):
            write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


SAMPLE = ["sample", "--model", "digits", "--prompt", "a 7", "--reward", "brightness", "--steps", "1"]


def invoke(*arguments: object):
    return CliRunner().invoke(main, list(map(str, arguments)))


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "meta"])
def test_an_absent_device_is_refused(tmp_path: Path, device: str) -> None:
    result = invoke(*SAMPLE, "--device", device, "--dtype", "float32", "--out", tmp_path / "run")
    assert result.exit_code in (1, 2) and "cannot be used here" in result.output.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["sample", "compare"])
def test_ctrl_c_while_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def load_model(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load_model", load_model)
    monkeypatch.setattr(comparison, "load_model", load_model)
    arguments = SAMPLE if command == "sample" else ["compare", *SAMPLE[1:-2], "--method", "base"]
    result = invoke(*arguments, "--out", tmp_path / "run")
    assert result.exit_code == 130 and "--resume to continue" in result.output


def test_options_of_the_commands_reach_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(loading, "load_model", lambda settings, compute: seen.append((settings, compute)))
    monkeypatch.setattr(
        execution,
        "execute",
        lambda *_: {"reward": {"mean": 1, "half_width": None}, "parts": {}, "best": [], "warnings": []},
    )
    file = tmp_path / "prompts"
    file.write_bytes("\ufeffa 8\r\n\r\na 9".encode())
    invoke(
        *SAMPLE,
        "--prompt-file",
        file,
        "--micro-batch",
        3,
        "--dtype",
        "bfloat16",
        "--lora",
        "some/lora",
        "--scale",
        0.5,
        "--out",
        tmp_path / "a",
    )
    invoke(
        "optimize",
        "--model",
        "digits-turbo",
        *SAMPLE[3:-2],
        "--iterations",
        2,
        "--lr",
        1,
        "--clip",
        2,
        "--operator",
        "w",
        "--out",
        tmp_path / "b",
    )
    (settings, compute), (optimized, _) = seen
    assert (
        settings.prompts == ("a 7", "a 8", "a 9")
        and settings.dtype == "bfloat16"
        and settings.lora == ("some/lora",)
    )
    defaults = {"rho": 0.01, "operator": "w"}
    assert settings.method.arguments == {
        **defaults,
        "steps": 1,
        "schedule": "linear",
        "scale": 0.5,
        "start": "noise",
    }
    assert (compute.micro_batch, compute.offload, compute.progress) == (3, False, True)
    wanted = {"iterations": 2, "lr": 1.0, "clip": 2.0, "operator": "w", "project": "both", "answer": "last"}
    assert optimized.method.arguments == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--offload"], "--offload is for GPUs"),
        (["--dtype", "float16"], "--dtype float16 rounds the small gradients of pixels to zero"),
        (
            ["--lora", "tests:nothing.safetensors"],
            "there is no file 'nothing.safetensors' in the folder 'tests'",
        ),
        (["--lora", "./nowhere"], "there are no weights './nowhere'"),
        (["--denoiser", "./nowhere"], "there are no weights './nowhere'"),
        (["--reward-source", "brightness=x/y"], "'brightness' has no weights"),
        (["--reward-source", "clip=~/nowhere"], "there is no ~/nowhere for 'clip'"),
        (["--num-frames", "5"], "'digits' (FLUX) has no num_frames; it has height, width, guidance_scale"),
        (["--held-out", "videoreward"], "the reward 'videoreward' judges videos, but 'digits' makes images"),
        (["--device", "cuda:1", "--offload", "--lora", "./nowhere"], "there are no weights"),
    ],
)
def test_a_dry_run_refuses_the_same_options_as_a_run(
    tmp_path: Path, options: list[str], message: str
) -> None:
    result = invoke(*SAMPLE, *options, "--dry-run", "--out", tmp_path / "run")
    assert result.exit_code == 1 and message in result.output.splitlines()[-1], result.output
    assert not (tmp_path / "run").exists()


def test_each_bundled_model_has_its_command(tmp_path: Path) -> None:
    arguments = ["--prompt", "a 7", "--reward", "brightness", "--out", tmp_path / "run"]
    result = invoke("sample", "--model", "digits-turbo", *arguments)
    assert (
        result.exit_code == 1
        and "'digits-turbo' is for `noisetilt optimize`; use 'digits' here" in result.output
    )
    result = invoke("optimize", "--model", "digits", *arguments)
    assert (
        result.exit_code == 1
        and "'digits' is for `noisetilt sample`; use 'digits-turbo' here" in result.output
    )
    assert not (tmp_path / "run").exists()


def test_a_bad_prompt_is_an_error_before_any_work(tmp_path: Path) -> None:
    for command in (SAMPLE, ["compare", *SAMPLE[1:-2], "--method", "base"]):
        result = invoke(*command, "--prompt", "a cat", "--held-out", "digit-judge", "--out", tmp_path / "run")
        assert (
            result.exit_code == 1 and "exactly one digit" in result.output and not (tmp_path / "run").exists()
        )
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    result = invoke(*SAMPLE, "--prompt-file", tmp_path / "latin", "--out", tmp_path / "run")
    assert result.exit_code == 2 and "must be UTF-8" in result.output


def test_best_of_is_a_positive_integer_and_in_the_plan(tmp_path: Path) -> None:
    compare = ["compare", *SAMPLE[1:-2], "--seeds", 4, "--out", tmp_path / "c", "--dry-run", "--method"]
    for wrong in ("0", "1,x"):
        result = invoke(*compare, "base", "--best-of", wrong)
        assert result.exit_code == 2 and "--best-of must be positive integers" in result.output
    result = invoke(*compare, "base:best_of=0")
    assert "--method base:best_of=0: best_of must be a positive integer" in result.output
    result = invoke(*compare, "base", "--method", "base:best_of=1")
    assert result.exit_code == 1 and "methods must differ" in result.output
    result = invoke(*compare, "base", "--method", "base:best_of=20", "--method", "ntrk")
    assert result.exit_code == 0, result.output
    assert "activations of 8 at once" in invoke(*compare, "base:best_of=2", "--micro-batch", 9).output
    plan = [line for line in result.output.splitlines() if line.startswith("NFE")]
    assert plan == [
        "NFE     25 per image, 2,000 in total for 80 images, to keep the best of 20",
        "NFE     25 per image, 100 in total",
    ]


def test_non_finite_is_passed_and_explained(tmp_path: Path) -> None:
    arguments = [*SAMPLE[:-1], 4, "--method", "dps", "--strength", 1e38, "--out", tmp_path / "run"]
    result = invoke(*arguments)
    assert result.exit_code == 1 and "--non-finite plain_noise" in result.output.splitlines()[-1]
    result = invoke(*arguments, "--resume", "--non-finite", "plain_noise")
    assert result.exit_code == 0 and "none finite" in result.output


def test_the_plan_follows_the_settings(tmp_path: Path) -> None:
    from noisetilt_kernels.runs.plan import describe

    settings = Settings("digits", ("a 7",), Method("ntrk"), parse_rewards("brightness"), height=40, width=48)
    settings = replace(settings, particles=3)

    def rows(settings: Settings, compute: ComputeOptions) -> dict[str, str]:
        lines = describe(settings, compute, tmp_path).text.splitlines()
        return {line[:8].strip(): line[8:] for line in lines}

    one = rows(settings, ComputeOptions())
    assert "40 x 48" in one["images"] and "4 x 20 x 24" in one["images"]
    assert "activations of 3 at once" in rows(settings, ComputeOptions(micro_batch=3))["memory"]
    assert (
        rows(settings, ComputeOptions(micro_batch=3))["memory"].split(":")[0] != one["memory"].split(":")[0]
    )
    assert (
        rows(settings, ComputeOptions("cuda", offload=True))["memory"].split(":")[0]
        != one["memory"].split(":")[0]
    )
    svdd = replace(settings, method=Method("svdd", {"candidates": 2}))
    assert "activations of 6 at once" in rows(svdd, ComputeOptions(micro_batch=50))["memory"]
    alone = replace(settings, method=Method("rbf"))
    assert "activations of 1 at once" in rows(alone, ComputeOptions(micro_batch=50))["memory"]
    assert "plus the" not in one["memory"]
    custom = replace(settings, rewards=parse_rewards("mine:taste,brightness"))
    assert rows(custom, ComputeOptions())["memory"].endswith("; plus the reward model of mine:taste")
    base = rows(replace(settings, method=Method("base")), ComputeOptions())["memory"]
    assert base.rsplit(" ", 2)[1:] != one["memory"].rsplit(" ", 2)[1:]  # activations differ


@pytest.mark.usefixtures("offline")
def test_the_plan_counts_rewards_with_weights(tmp_path: Path) -> None:
    from noisetilt_kernels.runs.plan import describe

    tiny_clip.save_clip(tmp_path / "clip", tiny_clip.make_model())
    tiny_qwen.save_vqa(tmp_path / "qwen", tiny_qwen.make_vqa_model())
    sources = {"clip": str(tmp_path / "clip"), "vqascore": str(tmp_path / "qwen")}

    def memory(rewards: str, held_out: str = "", device: str = "cpu") -> str:
        judges = parse_rewards(held_out, sources) if held_out else ()
        settings = Settings(
            "digits", ("a 7",), Method("ntrk"), parse_rewards(rewards, sources), held_out=judges
        )
        (line,) = [
            line
            for line in describe(settings, ComputeOptions(device), tmp_path).text.splitlines()
            if line.startswith("memory")
        ]
        return line

    def size(line: str, of: str) -> float:
        number, unit = re.search(rf"{of} ([\d.]+) (\w+)", line).groups()  # type: ignore[union-attr]
        return float(number) * {"B": 1, "KB": 1e3, "MB": 1e6}[unit]

    weights = sum(p.nbytes for p in tiny_clip.make_model().parameters())
    clip, digit, plain = memory("clip"), memory("digit"), memory("brightness", "clip", "cuda")
    assert size(clip, "rewards") == pytest.approx(weights, rel=0.1) and "plus the" not in clip
    assert size(plain, "rewards") == pytest.approx(weights / 2, rel=0.1), "bfloat16"
    activations = "activations of 1 at once"
    assert size(digit, activations) > size(clip, activations) and size(digit, "rewards") > 1e3
    both = memory("clip,vqascore,hpsv2")
    assert size(both, "rewards") > size(clip, "rewards")
    assert both.endswith("; plus the reward model of hpsv2; plus the graph of vqascore")


def test_a_comparison_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table.md").write_text("mine")
    with pytest.raises(Exception, match=r"already has a table\.md"):
        compared(tmp_path, monkeypatch, ["base:steps=2"])
    assert (tmp_path / "table.md").read_text() == "mine"


def test_the_sheet_of_a_run_has_prompts_and_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []
    original = execution.contact_sheet
    monkeypatch.setattr(
        execution, "contact_sheet", lambda *given, **cell: seen.append(given) or original(*given)
    )
    summary = run(tmp_path, WeightedSum({"brightness": (2.0, brightness)}))
    ((_, titles, _, chosen),) = seen
    framed = [frame for row in chosen for frame in row]
    assert titles == SETTINGS.prompts and [p for p, frame in enumerate(framed) if frame] == summary["best"]


def test_compare_passes_resume_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict] = []
    monkeypatch.setattr(comparison, "compare", lambda *_, **given: seen.append(given) or [])
    monkeypatch.setattr(comparison, "markdown", lambda rows: "")
    for more in ([], ["--resume"]):
        assert (
            invoke("compare", *SAMPLE[1:-2], "--method", "base", *more, "--out", tmp_path / "c").exit_code
            == 0
        )
    assert [given["resume"] for given in seen] == [False, True]
