"""The bundled lists of prompts: files as published, licences beside them, and how lines are read."""

import hashlib
import re
from collections import Counter
from itertools import pairwise

import pytest

from noisetilt_kernels.prompt_lists import PROMPT_LISTS, prompt_lines, prompts_of

PUBLISHED = {
    "animals": (45, "bc9e1176a2eb831541d98dcd810b674a36602a78"),
    "t2i-compbench-complex": (1000, "b4e43910aef29c98391374ada3d32f468d5226e2"),
    "vbench-animal": (100, "4420d3526029e1d3fbf85d4c3831cf0b01a84ad6"),
    "vbench-scenery": (100, "a8a6429f78d0e3f064a3572fa1d563d5b0cbfd21"),
}
"""Number of prompts, and git's hash of the file at the commit that is named as the source."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_lists_of_other_projects_are_kept_byte_for_byte_with_their_licence(name: str) -> None:
    one, (count, blob) = PROMPT_LISTS[name], PUBLISHED[name]
    content = one.file.read_bytes()
    assert hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == blob
    assert len(one.prompts) == len(set(one.prompts)) == count
    assert one.source is not None and one.license_file is not None
    words = {"MIT": "MIT License", "Apache-2.0": "Apache License"}[one.license]
    assert words in one.license_file.read_text(encoding="utf-8")


def test_prompts_are_the_lines_without_their_ends() -> None:
    assert prompts_of("animals")[:3] == ["cat", "dog", "horse"]
    assert prompts_of("t2i-compbench-complex")[1] == "The round clock was mounted on the white wall."
    assert prompts_of("vbench-animal")[-1] == "a nine banded armadillo searching for food"
    assert list(prompt_lines("a\r\n\n # b\n  c d \n#e\nf")) == [(1, "a"), (4, "c d"), (6, "f")]


def test_counting_has_two_numbers_of_every_noun() -> None:
    matches = [re.fullmatch(r"(\d+) ([a-z]+)", prompt) for prompt in prompts_of("counting")]
    pairs = [(int(match[1]), match[2]) for match in matches if match]
    assert len(pairs) == len(matches) == 40
    assert set(Counter(noun for _, noun in pairs).values()) == {2}
    numbers = sorted(number for number, _ in pairs)
    assert numbers[0] == 2 and numbers[-1] == 82 and len(set(numbers)) == 40
    assert {after - before for before, after in pairwise(numbers)} == {2, 3}


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"unknown prompt list 'animal'.*did you mean 'animals'"):
        prompts_of("animal")
