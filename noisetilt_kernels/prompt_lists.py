"""The bundled lists of prompts, which published comparisons use. `noisetilt prompts` lists them.

The files of other projects are kept byte for byte, with their licences in the folder `licenses` beside them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .checks import check_choice

_FOLDER = Path(__file__).parent / "assets" / "prompts"


@dataclass(frozen=True)
class PromptList:
    """A bundled list of prompts.

    Attributes:
        file: text file in UTF-8, see `prompt_lines`.
        description: what the prompts are, and who uses them.
        source: file that it is a copy of, with its commit; None for a list of this package.
        license: licence of the list.
        license_file: text of the licence; None for a list of this package.
    """

    file: Path
    description: str
    source: str | None = None
    license: str = "Apache-2.0"
    license_file: Path | None = None

    @property
    def prompts(self) -> list[str]:
        """The prompts in order."""
        return [prompt for _, prompt in prompt_lines(self.file.read_text(encoding="utf-8"))]


def _copied(name: str, description: str, source: str, license: str) -> PromptList:
    project = source.split("/")[2]
    return PromptList(
        _FOLDER / f"{name}.txt", description, source, license, _FOLDER / "licenses" / f"{project}.txt"
    )


_VBENCH = "github.com/Vchitect/VBench/blob/45e79ec/prompts/prompts_per_category"

PROMPT_LISTS: Mapping[str, PromptList] = {
    "animals": _copied(
        "animals",
        "simple animals of DDPO, for aesthetic rewards",
        "github.com/kvablack/ddpo-pytorch/blob/1958463/ddpo_pytorch/assets/simple_animals.txt",
        "MIT",
    ),
    "counting": PromptList(_FOLDER / "counting.txt", "numbers of things, for counting rewards"),
    "t2i-compbench-complex": _copied(
        "t2i-compbench-complex",
        "complex compositions of T2I-CompBench",
        "github.com/Karine-Huang/T2I-CompBench/blob/1b70949/examples/dataset/complex.txt",
        "MIT",
    ),
    "vbench-animal": _copied(
        "vbench-animal", "animals of VBench, for videos", f"{_VBENCH}/animal.txt", "Apache-2.0"
    ),
    "vbench-scenery": _copied(
        "vbench-scenery", "scenery of VBench, for videos", f"{_VBENCH}/scenery.txt", "Apache-2.0"
    ),
}
"""The lists by name."""


def prompts_of(name: str) -> list[str]:
    """Return the prompts of a bundled list.

    Raises:
        ValueError: there is no list of that name.
    """
    check_choice("prompts_of", "prompt list", name, PROMPT_LISTS)
    return PROMPT_LISTS[name].prompts


def prompt_lines(text: str) -> Iterator[tuple[int, str]]:
    """Iterate over the prompts of a file with one prompt per line, with the numbers of their lines.

    Empty lines and lines that begin with # are left out, and so is space around a prompt.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        prompt = line.strip()
        if prompt and not prompt.startswith("#"):
            yield number, prompt
