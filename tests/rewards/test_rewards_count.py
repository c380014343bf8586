"""Counting: numbers in prompts, the reward and its judges by any counter, and T2ICount."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from reward_checks import check_mistakes, some_images
from torch import Tensor

from noisetilt_kernels.prompt_lists import prompts_of
from noisetilt_kernels.rewards import RewardError, RewardSpec, check_prompts, load_reward, load_rewards
from noisetilt_kernels.rewards.counting.count import Count, CountError, CountExact
from noisetilt_kernels.rewards.counting.quantity import Quantity, quantity_of

# ---- numbers in prompts ----


@pytest.mark.parametrize(
    ("prompt", "number", "noun"),
    [
        ("37 strawberries", 37, "strawberries"),
        ("a photo of 37 strawberries", 37, "strawberries"),
        ("a photo of 22 ripe grapes on a plate", 22, "ripe grapes"),
        ("Twelve hot-air balloons over the sea, at dawn", 12, "hot-air balloons"),
        ("twenty men's hats", 20, "men's hats"),
        ("zero cats", 0, "cats"),
        ("a 3D render of 5 cups, 35mm", 5, "cups"),
        ("82 oranges in the often visited garden", 82, "oranges"),
        ("4 onions", 4, "onions"),  # begins with a word that ends nouns
    ],
)
def test_numbers_and_nouns(prompt: str, number: int, noun: str) -> None:
    assert quantity_of(prompt) == Quantity(number, noun)


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("strawberries", "its numbers are: none"),
        ("", "its numbers are: none"),
        ("1,000 strawberries", "its numbers are: none"),
        ("twenty-seven strawberries", "its numbers are: none"),
        ("two apples and 3 pears", "its numbers are: two, 3"),
        ("strawberries, 37", "no noun follows the number"),
        ("37 of them", "no noun follows the number"),
    ],
)
def test_prompts_without_one_number(prompt: str, problem: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^quantity_of: prompt must name .* '37 strawberries'; {problem}: "
    ):
        quantity_of(prompt)


def test_the_bundled_prompts_are_understood() -> None:
    for prompt in prompts_of("counting"):
        assert "{} {}".format(*quantity_of(prompt)) == prompt


# ---- any counter ----


def brightness_of(images: Tensor, nouns: Sequence[str]) -> Tensor:
    """Counter whose number is known: the sum of the pixels, and one for each letter of the noun."""
    return images.sum(dim=(1, 2, 3)) + torch.tensor([float(len(noun)) for noun in nouns])


def constant(count: float) -> Tensor:
    """Return images (1, 3, 4, 4) in which `brightness_of` counts this number of "cups"."""
    return torch.full((1, 3, 4, 4), (count - 4) / 48)


@pytest.mark.parametrize(
    ("counted", "wanted", "reward", "error", "exact"),
    [
        (10, 10, 0.0, 0.0, 1),
        (10.4, 10, -0.08, -0.4, 1),
        (9.6, 10, -0.08, -0.4, 1),
        (10.6, 10, -0.18, -0.6, 0),
        (13, 10, -2.5, -3.0, 0),
        (6, 10, -3.5, -4.0, 0),
    ],
)
def test_values(counted: float, wanted: int, reward: float, error: float, exact: int) -> None:
    images, prompt = constant(counted), f"a photo of {wanted} cups on a table"
    for kind, expected in ((Count, reward), (CountError, error), (CountExact, exact)):
        value = kind(brightness_of)(images, [prompt])
        torch.testing.assert_close(value, torch.tensor([float(expected)]), rtol=0, atol=1e-5)


def test_each_prompt_has_its_number() -> None:
    images = torch.cat([constant(10), constant(10)])
    assert Count(brightness_of)(images, ["12 cups", "nine cups"]).tolist() == pytest.approx([-1.5, -0.5])


def test_one_quantity_for_all_prompts() -> None:
    reward = Count(brightness_of, Quantity(12, "cups"))
    assert reward(constant(10), ["a kitchen"]).tolist() == pytest.approx([-1.5])


def test_gradient_of_a_custom_counter() -> None:
    images = torch.cat([constant(10), constant(9.6)]).requires_grad_()
    (gradient,) = torch.autograd.grad(Count(brightness_of)(images, ["12 cups", "9 cups"]).sum(), images)
    torch.testing.assert_close(gradient[0], torch.ones(3, 4, 4))  # too few
    torch.testing.assert_close(gradient[1], torch.full((3, 4, 4), -0.6))  # too many, by less than 1
    for judge in (CountError, CountExact):
        assert not judge(brightness_of)(images, ["12 cups", "9 cups"]).requires_grad


def test_invalid_counters() -> None:
    with pytest.raises(TypeError, match=r"^count: counter must be callable"):
        Count("apples")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^count-exact: counter must return a tensor \(2,\), .* got \(\)"):
        CountExact(lambda images, nouns: images.sum())(some_images(2), ["2 cups", "3 cups"])
    check_mistakes(Count(lambda images, nouns: images.sum(dim=(1, 2, 3)), Quantity(2, "cups")), "count")


@pytest.fixture
def counters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_counters.py").write_text(
        "def lights(images, nouns):\n"
        "    assert nouns == ['cups'] * len(images)\n"
        "    return 10 * images.mean(dim=(1, 2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    return "my_counters.py:lights"


def test_custom_counters_by_name(counters: str) -> None:
    images = torch.full((2, 3, 4, 4), 0.5)
    reward = load_rewards(f"count:{counters}=2,brightness=0")
    assert reward(images, ["7 cups", "a photo of 5 cups"]).tolist() == pytest.approx([-3.0, 0.0])
    error, exact = (load_reward(f"count-{kind}:{counters}") for kind in ("error", "exact"))
    assert error(images, ["7 cups", "5 cups"]).tolist() == pytest.approx([-2.0, 0.0])
    assert exact(images, ["7 cups", "5 cups"]).tolist() == [0, 1]


def test_a_custom_counter_is_the_users_code(counters: str) -> None:
    spec = RewardSpec.parse(f"count:{counters}", sources={"count": "elsewhere"})
    assert spec.entry.custom and spec.has_weights and spec.source is None
    spec.check_exists()
    missing = RewardSpec.parse("count-error:nowhere.py:lights")
    with pytest.raises(RewardError, match=r"^load_reward: there is no file nowhere.py for the reward"):
        missing.check_exists()
    with pytest.raises(ValueError, match=r"has no weights that a source could name"):
        spec.with_source("elsewhere")
    with pytest.raises(ValueError, match=r"^quantity_of: .*none: 'cups'"):
        spec.check_prompts(["7 cups", "cups"])


def test_arguments_are_checked_before_loading() -> None:
    check_prompts(["count", "count-error", "count-exact"], ["7 cups"])
    check_prompts(["count:7 cups", "count-exact:seven cups"], ["a kitchen"])
    for name in ("count", "count-error", "count-exact"):
        with pytest.raises(ValueError, match=r"^quantity_of: prompt must name exactly one number"):
            check_prompts([name], ["a kitchen"])
        with pytest.raises(ValueError, match=r"^quantity_of: .*: 'many cups'"):
            RewardSpec.parse(f"{name}:many cups")
    for judge in ("count-error", "count-exact"):
        with pytest.raises(ValueError, match=rf"^rewards: reward '{judge}' has no gradient"):
            load_rewards(judge)
