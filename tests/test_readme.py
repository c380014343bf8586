"""The README's Python runs as it stands, from top to bottom."""

import re
from pathlib import Path

import torch

from noisetilt_kernels.sampling import Result

README = Path(__file__).parents[1] / "README.md"


def test_readme_snippets_run() -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) == 5
    names: dict[str, object] = {}
    exec("\n".join(snippets), names)
    noise = names["noise"]
    assert isinstance(noise, torch.Tensor)
    assert abs(noise.norm() / noise.numel() ** 0.5 - 1) < 0.015
    result = names["result"]
    assert isinstance(result, Result)
    assert result.nfe == 4 * 25
    assert (result.rewards > 0.05).all()
    steered, images = names["steered"], names["images"]
    assert isinstance(steered, Result) and isinstance(images, torch.Tensor)
    assert steered.nfe == 4 * 25 and images.shape == (4, 3, 32, 32)


def test_readme_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text())
    assert links
    for link in links:
        assert (README.parent / link).exists(), link
