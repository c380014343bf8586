"""README and pages: Python blocks run as shown, commands and files exist, lines are short, helps are current.

A block below `<!-- not run: REASON -->` is compiled only, and so are those of the pages about external models
and rewards.
"""

import importlib.util
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from noisetilt_cli import main
from noisetilt_kernels.sampling import Result

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
] + sorted((ROOT / "docs").rglob("*.md"))  # fmt: skip
EXTERNAL = [page for page in PAGES if page.parent in (ROOT / "docs" / "models", ROOT / "docs" / "rewards")]
"""Pages whose Python needs weights that are not bundled."""
MOST_COLUMNS = 100

_BLOCK = re.compile(r"(<!-- (not run)[^\n]*-->\n+)?^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Return mark ("" or "not run") and text of each block of a page."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [(mark, text) for _, mark, lang, text in found if lang == language]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def run_blocks(page: Path) -> dict[str, object]:
    """Run the unmarked Python blocks of a page in one namespace, and return the namespace."""
    names: dict[str, object] = {"__name__": "page"}
    for mark, text in blocks(page, "python"):
        code = compile(text, name_of(page), "exec")
        if not mark and page not in EXTERNAL:
            exec(code, names)
    return names


@pytest.fixture(autouse=True)
def registries_restored() -> Iterator[None]:
    """Remove samplers that a page registers."""
    from noisetilt_kernels.sampling import SAMPLERS

    before = dict(SAMPLERS)
    yield
    for name in set(SAMPLERS) - set(before):
        del SAMPLERS[name]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # pages write files
    run_blocks(page)


def test_readme_whitens() -> None:
    names = run_blocks(ROOT / "README.md")
    noise = names["noise"]
    assert isinstance(noise, torch.Tensor)
    assert abs(noise.norm() / noise.numel() ** 0.5 - 1) < 0.015


def test_pages_steer() -> None:
    result = run_blocks(ROOT / "docs" / "sampling.md")
    best = result["best"]
    assert isinstance(best, Result) and len(best.chosen) == 1
    names = run_blocks(ROOT / "docs" / "quickstart.md")
    steered, images = names["steered"], names["images"]
    assert isinstance(steered, Result) and isinstance(images, torch.Tensor)
    assert steered.nfe == 4 * 25 and images.shape == (4, 3, 32, 32)


def test_ntrk_on_one_screen_steers() -> None:
    """The listing steers like the package's sampler."""
    names = run_blocks(ROOT / "docs" / "sampling.md")
    result = names["result_of_flow"]
    assert isinstance(result, Result)
    assert result.nfe == 4 * 25
    assert (result.rewards > 0.04).all()
    torch.manual_seed(0)
    flow, redness, ntrk = (cast(Callable[..., Any], names[name]) for name in ("Flow", "redness", "ntrk"))
    steered, unguided = (ntrk(flow(), redness, ["red"] * 4, rho=rho) for rho in (0.3, 0.0))
    assert (redness(flow().decode(steered), []) > 0.04).all()
    assert (redness(flow().decode(unguided), []).abs() < 0.03).all()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        path = page.parent / target if target else page
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = [
                re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
            ]
            assert anchor in anchors, link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_lines_are_short(page: Path) -> None:
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        assert len(line) <= MOST_COLUMNS or line.startswith(("|", "![")), f"{name_of(page)}:{number}"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


def commands(page: Path) -> list[list[str]]:
    """Return the words of each command of a page, without commands that contain "..."."""
    found = []
    for _, text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # environment variables
                words.pop(0)
            if words and "..." not in words:
                found.append(words)
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_commands_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        if words[0] == "torchrun":
            words = ["noisetilt", *words[words.index("noisetilt_kernels") + 1 :]]
        if words[0] == "noisetilt":
            subcommand, arguments = main.commands[words[1]], words[2:]
            with subcommand.make_context(words[1], list(arguments)):  # unknown options raise
                pass
        elif words[0].endswith("python") and words[1] == "-m":
            assert importlib.util.find_spec(words[2]) is not None, words
        elif words[0].endswith("python"):
            assert (ROOT / words[1]).exists(), words
        elif words[0] == "make":
            makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words[1:]), words
        elif words[0].endswith("pytest"):
            assert all((ROOT / word).exists() for word in words[1:] if word.startswith("tests/")), words
        elif words[:2] == ["pip", "install"] and "-r" in words:
            assert (ROOT / words[-1]).exists(), words
        elif "/" in words[0]:
            assert (ROOT / words[0]).exists(), words
        else:
            assert words[0] in ("pip", "mkdocs", "compute-sanitizer", "pytest", "hf"), words


def test_generated_parts_of_pages_are_current() -> None:
    stale_files = runpy.run_path(str(ROOT / "docs" / "generate.py"))["stale_files"]
    assert stale_files(write=False) == [], "run python docs/generate.py"
