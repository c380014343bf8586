"""Training loop of all models."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm


def train(
    name: str,
    model: nn.Module,
    batch_loss: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    decay: float = 0.998,
) -> None:
    """Minimise `batch_loss()` by AdamW with warm-up and cosine decay.

    The model ends with the moving average of its weights, in eval mode.

    Args:
        name: label of the progress bar.
        model: network to train, changed in place.
        batch_loss: function that draws a batch and returns its loss.
        steps: number of batches.
        lr: highest learning rate.
        decay: decay of the moving average.
    """
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    warm = max(1, min(100, steps // 10))
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warm, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warm), eta_min=lr / 50),
        ],
        milestones=[warm],
    )
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    with tqdm(range(steps), desc=name) as bar:
        smoothed_loss = None
        for _ in bar:
            optimizer.zero_grad()
            loss = batch_loss()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            smoothed_loss = (
                loss.item() if smoothed_loss is None else 0.98 * smoothed_loss + 0.02 * loss.item()
            )
            bar.set_postfix(loss=f"{smoothed_loss:.4f}", refresh=False)
    model.load_state_dict(average.module.state_dict())
    model.eval().requires_grad_(False)


def batches(count: int, size: int) -> Iterable[slice]:
    """Return slices of `size` that cover `count`; the last one may be shorter."""
    return (slice(start, start + size) for start in range(0, count, size))
