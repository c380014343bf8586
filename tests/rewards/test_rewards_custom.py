"""Custom rewards by name: MODULE:NAME and FILE.py:NAME."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from reward_checks import check_each_by_itself, check_gradient, some_images

from noisetilt_cli import main
from noisetilt_kernels.rewards import RewardError, check_prompts, load_reward, load_rewards, parse_weights
from noisetilt_kernels.rewards.custom import is_custom
from noisetilt_kernels.rewards.frames import of_videos, takes_videos

CODE = """
from dataclasses import dataclass

import torch


def redness(images, prompts):
    "Differentiable, in float64, and of the prompts as well."
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return images[:, 0].double().mean(dim=(1, 2)) * lengths


@dataclass
class Level:
    "An object that is called."
    channel: int

    def __call__(self, images, prompts):
        return images[:, self.channel].mean(dim=(1, 2))


greenness = Level(1)
level = 3


def motion(videos, prompts):
    return videos.diff(dim=2).square().mean(dim=(1, 2, 3, 4))


motion.takes_videos = True
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Current directory with modules of rewards; imports from it are undone at the end."""
    (tmp_path / "my_tastes.py").write_text(CODE)
    (tmp_path / "my_package" / "inner").mkdir(parents=True)
    (tmp_path / "my_package" / "__init__.py").touch()
    (tmp_path / "my_package" / "inner" / "tastes.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None) or name) or name.startswith(
            "my_"
        ):
            del sys.modules[name]


# ---- loading ----


@pytest.mark.parametrize(
    "module", ["my_tastes", "my_package.inner.tastes", "my_tastes.py", "{folder}/my_tastes.py"]
)
def test_a_function_and_an_object(module: str, folder: Path) -> None:
    module = module.format(folder=folder)
    images = some_images(2)
    torch.testing.assert_close(
        load_reward(f"{module}:redness")(images, ["a", "cat"]),
        images[:, 0].double().mean(dim=(1, 2)) * torch.tensor([1, 3]),
    )
    torch.testing.assert_close(
        load_reward(f"{module}:greenness")(images, ["", ""]), images[:, 1].mean(dim=(1, 2))
    )


def test_custom_rewards_in_a_weighted_sum() -> None:
    spec = "my_tastes:redness=0.5,brightness,my_tastes.py:greenness=-2"
    assert parse_weights(spec) == {
        "my_tastes:redness": 0.5,
        "brightness": 1.0,
        "my_tastes.py:greenness": -2.0,
    }
    reward, images, prompts = load_rewards(spec), some_images(2), ["a", "cat"]
    assert list(reward.parts(images, prompts)) == [
        "my_tastes:redness",
        "brightness",
        "my_tastes.py:greenness",
    ]
    check_gradient(reward, images, prompts)
    check_each_by_itself(reward, images, prompts, tolerance=1e-6)


def test_a_module_is_imported_once() -> None:
    for module in ("my_tastes", "my_tastes.py"):
        first, second = (load_reward(f"{module}:greenness") for _ in range(2))
        assert first.__wrapped__ is second.__wrapped__


def test_installed_modules_come_first(folder: Path) -> None:
    """A file in the current directory does not shadow a module of Python or of a package."""
    before = list(sys.path)
    (folder / "colorsys.py").write_text("raise AssertionError")
    load_reward("my_tastes:redness")
    load_reward("my_tastes:greenness")
    assert sys.path == [*before, str(folder)]
    with pytest.raises(RewardError, match="colorsys has no 'redness'"):
        load_reward("colorsys:redness")


def test_bundled_names_come_first(folder: Path) -> None:
    (folder / "color.py").write_text(CODE)
    with pytest.raises(ValueError, match=r"^color: target must be #rrggbb or one of .*, got 'redness'"):
        load_reward("color:redness")
    with pytest.raises(ValueError, match=r"^rewards: reward 'clip' takes no argument, got 'clip:redness'"):
        parse_weights("clip:redness")
    assert load_reward("color.py:redness")(some_images(1), ["a"]).shape == (1,)


def test_nothing_is_imported_before_it_is_loaded(folder: Path) -> None:
    (folder / "my_trap.py").write_text("raise AssertionError")
    assert list(parse_weights("my_trap:a,my_trap.py:b")) == ["my_trap:a", "my_trap.py:b"]
    check_prompts(["my_trap:a", "my_trap.py:b"], ["a cat"])
    assert "my_trap" not in sys.modules


def test_videos() -> None:
    motion = load_reward("my_tastes:motion")
    assert takes_videos(motion) and not takes_videos(load_reward("my_tastes:redness"))
    assert of_videos(motion) is motion
    assert of_videos(load_reward("my_tastes:greenness"))(torch.rand(2, 3, 4, 8, 8), ["", ""]).shape == (2,)


# ---- on the command line ----


def test_a_run_with_custom_rewards(folder: Path) -> None:
    command = "sample --model digits --prompt 7 --steps 2 --out out --reward my_tastes:redness=2,brightness"
    result = CliRunner().invoke(main, [*command.split(), "--held-out", "my_tastes.py:greenness"])
    assert result.exit_code == 0, result.output
    settings = json.loads((folder / "out" / "run.json").read_text())["settings"]
    assert settings["rewards"] == {"my_tastes:redness": 2.0, "brightness": 1.0}
    assert settings["held_out"] == ["my_tastes.py:greenness"]
    (line,) = (folder / "out" / "results.jsonl").read_text().splitlines()
    assert "my_tastes.py:greenness" in line and "my_tastes:redness" in line


def test_a_mistake_is_one_sentence() -> None:
    command = "sample --model digits --prompt 7 --steps 2 --out out --reward my_tastes:rednes"
    result = CliRunner().invoke(main, command.split())
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert (
        result.output.strip()
        .splitlines()[-1]
        .startswith("Error: load_reward: my_tastes has no 'rednes', which")
    )


def test_the_list_of_rewards_names_custom_rewards() -> None:
    output = CliRunner().invoke(main, ["rewards"]).output
    assert "\nMODULE:NAME   custom reward, a function (images, prompts) -> (B,)" in output


# ---- errors ----


@pytest.mark.parametrize(
    ("name", "custom"),
    [
        ("a:b", True),
        ("a.b_2.c:d", True),
        ("größe:schön", True),
        ("a.py:b", True),
        ("../some folder/a-b.py:c", True),
        ("C:\\tastes\\a.py:c", True),
        ("a", False),
        ("a:", False),
        (":b", False),
        ("a:b.c", False),
        ("a-b:c", False),
        ("2a:b", False),
        ("a..b:c", False),
        (".py:c", False),
        ("a:b:c", False),
        ("a:#ff8000", False),
    ],
)
def test_forms_of_names(name: str, custom: bool) -> None:
    assert is_custom(name) is custom


@pytest.mark.parametrize(
    "call", [parse_weights, load_reward, load_rewards, lambda name: check_prompts([name], [])]
)
def test_invalid_names(call: Callable[[str], Any]) -> None:
    message = (
        r"^rewards: 'my-tastes:redness' is neither a bundled reward nor a custom one, which is written "
        r"MODULE:NAME or FILE\.py:NAME$"
    )
    with pytest.raises(ValueError, match=message):
        call("my-tastes:redness")


def check_error(name: str, message: str) -> BaseException | None:
    with pytest.raises(RewardError, match=f"^load_reward: {message}") as caught:
        load_reward(name)
    assert "\n" not in str(caught.value)
    return caught.value.__cause__


def test_missing_modules() -> None:
    for name, module in {
        "nothing:a": "nothing",
        "nothing.more:a": "nothing",
        "my_package.no:a": "my_package.no",
    }.items():
        check_error(
            name,
            f"there is neither a module '{re.escape(module)}' nor a bundled reward for '{name}'; run in the",
        )
    check_error(
        "colour:blue", "there is neither a module 'colour' nor a bundled reward for 'colour:blue'; run in"
    )
    check_error(
        "no/where.py:a", r"there is no file no/where.py for the reward 'no/where.py:a'; correct the path$"
    )


@pytest.mark.parametrize("form", ["my_broken", "my_broken.py"])
@pytest.mark.parametrize(
    ("code", "error", "reason"),
    [
        ("import no_such_module", ModuleNotFoundError, "No module named 'no_such_module'"),
        ("from torch import no_such_name", ImportError, "cannot import name 'no_such_name' from 'torch'"),
        ("def f(:", SyntaxError, "invalid syntax"),
        ("1 / 0", ZeroDivisionError, "division by zero"),
        ("raise RuntimeError('first\\nsecond')", RuntimeError, "first"),
        ("import math; math.sqrt(-1)", ValueError, "math domain error|expected a nonnegative input"),
    ],
)
def test_code_that_fails(form: str, code: str, error: type[Exception], reason: str, folder: Path) -> None:
    (folder / "my_broken.py").write_text(code)
    for _ in range(2):  # a failed import is not cached
        cause = check_error(
            f"{form}:a",
            rf"the code of the reward '{form}:a' fails when it is imported in \S+my_broken.py, line 1: "
            rf"{error.__name__}: {reason}.*; correct it there$",
        )
        assert isinstance(cause, error)


BROKEN = """
import sys
import torch
import my_helper

def ends(images, prompts):
    sys.exit(0)

def divides(images, prompts):
    return images.mean() / len(prompts[0]) + 1 // 0

def multiplies(images, prompts):
    return torch.nn.functional.linear(images, torch.ones(7))

def helped(images, prompts):
    return my_helper.fail()

def alone(images):
    return images.mean(dim=(1, 2, 3))

def three(images, prompts, more):
    return images.mean(dim=(1, 2, 3))

class Net(torch.nn.Module):
    def forward(self, images):
        return images.mean(dim=(1, 2, 3))

net = Net()
"""


@pytest.mark.parametrize("module", ["my_broken", "my_broken.py"])
@pytest.mark.parametrize(
    ("name", "place", "reason"),
    [
        ("ends", "my_broken.py, line 7", r"fails with sys.exit\(0\) in {place}; raise an exception instead"),
        ("divides", "my_broken.py, line 10", "fails in {place}: ZeroDivisionError: .*; correct it there"),
        ("multiplies", "my_broken.py, line 13", "fails in {place}: RuntimeError: .*; correct it there"),
        ("helped", "my_helper.py, line 2", "fails in {place}: KeyError: 'x'; correct it there"),
    ],
)
def test_a_reward_that_fails(module: str, name: str, place: str, reason: str, folder: Path) -> None:
    (folder / "my_broken.py").write_text(BROKEN)
    (folder / "my_helper.py").write_text("def fail():\n    raise KeyError('x')\n")
    sys.path.insert(0, str(folder))
    message = f"^reward '{module}:{name}' " + reason.format(place=re.escape(str(folder / place))) + "$"
    for reward in (load_reward(f"{module}:{name}"), load_rewards(f"{module}:{name}")):
        with pytest.raises(RewardError, match=message) as caught:
            reward(some_images(1), ["a"])
        assert "\n" not in str(caught.value)
        assert caught.value.__cause__ is not None
    if name == "ends":
        command = f"sample --model digits --prompt 7 --steps 1 --out out --reward {module}:{name}"
        result = CliRunner().invoke(main, command.split())
        assert result.exit_code == 1 and f"Error: reward '{module}:ends' fails with" in result.output


@pytest.mark.parametrize("own_checkpoint", [False, True])
def test_a_custom_reward_of_images_steers_videos(own_checkpoint: bool, folder: Path) -> None:
    """Checkpoints stop their second computation by an exception within the reward."""
    call = "checkpoint(square, images, use_reentrant=False)" if own_checkpoint else "square(images)"
    (folder / "my_square.py").write_text(
        "from torch.utils.checkpoint import checkpoint\n"
        "def square(images):\n    return images.square().mean(dim=(1, 2, 3))\n"
        f"def reward(images, prompts):\n    return {call}\n"
    )
    reward = of_videos(load_reward(f"{folder / 'my_square.py'}:reward"))
    videos = torch.rand(2, 3, 5, 8, 8, requires_grad=True)
    reward(videos, ["a", "b"]).sum().backward()
    assert videos.grad is not None
    torch.testing.assert_close(videos.grad, 2 * videos.detach() / videos[0].numel())


@pytest.mark.parametrize(
    ("name", "signature"), [("alone", "(images)"), ("three", "(images, prompts, more)"), ("net", "(images)")]
)
def test_arguments_of_a_reward(name: str, signature: str, folder: Path) -> None:
    (folder / "my_broken.py").write_text(BROKEN)
    (folder / "my_helper.py").touch()
    sys.path.insert(0, str(folder))
    check_error(
        f"my_broken.py:{name}",
        rf"'my_broken.py:{name}' must be callable as reward\(images, prompts\), got a function with the "
        rf"arguments {re.escape(signature)}$",
    )


@pytest.mark.parametrize("module", ["my_broken", "my_broken.py"])
def test_code_that_ends_the_program(module: str, folder: Path) -> None:
    (folder / "my_broken.py").write_text("import sys\nsys.exit(0)\n")
    check_error(
        f"{module}:a",
        rf"the code of the reward '{module}:a' fails when it is imported with sys.exit\(0\) in "
        rf"{re.escape(str(folder))}/my_broken.py, line 2; raise an exception instead$",
    )


def test_ctrl_c_and_lack_of_memory_pass(folder: Path) -> None:
    code = "import torch\ndef stop(i, p):\n raise {}\ndef full(i, p):\n raise {}\n"
    (folder / "my_broken.py").write_text(code.format("KeyboardInterrupt", "torch.OutOfMemoryError"))
    for name, error in {"stop": KeyboardInterrupt, "full": torch.OutOfMemoryError}.items():
        with pytest.raises(error):
            load_rewards(f"my_broken.py:{name}")(some_images(1), ["a"])


@pytest.mark.parametrize("module", ["my_tastes", "my_tastes.py"])
def test_names_that_are_no_rewards(module: str) -> None:
    check_error(
        f"{module}:rednes", rf"{module} has no 'rednes', which the reward '{module}:rednes' needs; define it"
    )
    check_error(f"{module}:level", rf"'{module}:level' must be callable as reward\(images, prompts\), got 3$")
    check_error(
        f"{module}:Level",
        rf"'{module}:Level' must be a function or an object, got a class; create an object in",
    )


def test_a_custom_reward_takes_no_source() -> None:
    with pytest.raises(
        ValueError, match=r"^rewards: reward 'my_tastes:redness' has no weights that a source could name"
    ):
        load_reward("my_tastes:redness", source="somewhere")
