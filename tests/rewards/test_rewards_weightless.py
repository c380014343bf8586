"""Memory of rewards counted with fake tensors, compared with that of the real ones."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from reward_checks import some_images
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

pytest.importorskip("transformers")

import test_rewards_aesthetic_v2_5 as siglip
import test_rewards_clip as clip
import test_rewards_hpsv2 as hpsv2
import test_rewards_imagereward as imagereward
import test_rewards_mps as mps
import tiny_clip
import tiny_qwen
import tiny_t2icount

from noisetilt_kernels.models.memory import PeakMemory
from noisetilt_kernels.rewards import RewardError, checkpoint, load_reward, weightless
from noisetilt_kernels.rewards.counting import t2icount
from noisetilt_kernels.rewards.registry import ENTRIES
from noisetilt_kernels.rewards.weightless import without_weights

pytestmark = pytest.mark.usefixtures("offline")


def save_clip(folder: Path) -> None:
    tiny_clip.save_clip(folder, tiny_clip.make_model())


def save_aesthetic(folder: Path) -> None:
    save_clip(folder)
    torch.save(clip.named_layers(), folder / "sac+logos+ava1-l14-linearMSE.pth")


def save_siglip(folder: Path) -> None:
    siglip.make_siglip().save_pretrained(folder)
    torch.save(siglip.named_layers(), folder / siglip.FILE)


def save_mps(folder: Path) -> None:
    mps.save_module(mps.make_published(), folder / mps.FILE)
    tiny_clip.make_tokenizer().save_pretrained(folder)


def save_videoreward(folder: Path) -> None:
    tiny_qwen.save_videoreward(folder)
    tiny_qwen.save_base(folder)


SAVE: dict[str, Callable[[Path], Any]] = {
    "aesthetic": save_aesthetic,
    "aesthetic-v2.5": save_siglip,
    "clip": save_clip,
    "count:2 cats": tiny_t2icount.save_t2icount,
    "hpsv2": lambda folder: hpsv2.save_checkpoint(folder, hpsv2.make_open_clip().state_dict()),
    "hpsv3": tiny_qwen.save_hpsv3,
    "imagereward": lambda folder: imagereward.save_checkpoint(folder, imagereward.make_tensors()),
    "mps": save_mps,
    "pickscore": save_clip,
    "videoreward": save_videoreward,
    "vlm:depth": lambda folder: tiny_qwen.save_vqa(folder, tiny_qwen.make_vqa_model()),
    "vqascore": lambda folder: tiny_qwen.save_vqa(folder, tiny_qwen.make_vqa_model()),
}


@pytest.fixture(params=SAVE)
def source(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Path]:
    """Name of a reward and the folder of its weights."""
    monkeypatch.setattr(t2icount, "SIDE", 64)
    SAVE[request.param](tmp_path)
    return request.param, tmp_path


def modules_of(part: Any) -> Iterator[nn.Module]:
    if isinstance(part, nn.Module):
        yield part
    elif isinstance(part, list):
        for one in part:
            yield from modules_of(one)
    elif hasattr(part, "__dict__"):
        for one in vars(part).values():
            yield from modules_of(one)


def weights_of(reward: Any) -> int:
    storages = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for module in modules_of(reward)
        for parameter in module.parameters()
    }
    return sum(storages.values())


def measured(reward: Any, images: Tensor) -> int:
    """Return the peak of the bytes alive in a forward and a backward."""
    images = images.clone().requires_grad_()
    # a storage is known as one of the weights as long as this object of it lives
    weights = [p.untyped_storage() for module in modules_of(reward) for p in module.parameters()]
    with PeakMemory() as memory:
        torch.autograd.grad(reward(images, ["a cat", "a cat"]).sum(), images)
    del weights
    return memory.peak


def loaded(name: str, folder: Path, device: str) -> tuple[Any, int]:
    with PeakMemory() as memory:
        with without_weights(device):
            reward = load_reward(name, source=str(folder))
        gc.collect()
    return reward, memory.alive


def test_weights_and_graph_are_those_of_the_real_reward(source: tuple[str, Path]) -> None:
    name, folder = source
    real = load_reward(name, source=str(folder))
    images = some_images(2, 50, 40)
    counts_graph = ENTRIES[name.partition(":")[0]].counts_graph
    expected = measured(real, images) if counts_graph else 0
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake, weights = loaded(name, folder, "cpu")
        assert all(isinstance(p, FakeTensor) for one in modules_of(fake) for p in one.parameters())
        # buffers, the head of videoreward and angles of positions are small, but the models are too
        assert weights_of(real) <= weights <= 1.02 * weights_of(real) + 60_000
        if counts_graph:
            assert measured(fake, mode.from_tensor(images)) == pytest.approx(expected, rel=0.1)


def test_weights_have_the_dtype_of_the_planned_device(source: tuple[str, Path]) -> None:
    name, folder = source
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake, _ = loaded(name, folder, "cuda")
        dtypes = {p.dtype for one in modules_of(fake) for p in one.parameters()}
    assert torch.bfloat16 in dtypes and dtypes <= {torch.bfloat16, torch.float32}
    real = load_reward(name, source=str(folder))
    assert {p.dtype for one in modules_of(real) for p in one.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["aesthetic-v2.5", "hpsv2", "hpsv3", "imagereward", "mps"])
def test_files_are_not_downloaded(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*given: Any, local_files_only: bool = False, **options: Any) -> str:
        assert local_files_only, "a download"
        raise OSError("not here")

    monkeypatch.setattr(checkpoint, "cached_file", refused)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refused)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, without_weights("cpu"), pytest.raises(RewardError, match=f"^{name}: "):
        load_reward(name)


def test_values_of_a_file_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes are enough; the published files have up to 16 GB."""
    tiny_qwen.save_hpsv3(tmp_path)
    monkeypatch.delattr(weightless, "load_file")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert loaded("hpsv3", tmp_path, "cpu")[1] > 0
