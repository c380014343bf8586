"""The loop that all trainings share."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    decay: float = 0.998,
) -> None:
    """Minimise `loss_of()` by AdamW with a warm-up and a cosine; leaves the moving average of the weights in `model`.

    Args:
        name: for the progress bar.
        model: what is trained.
        loss_of: makes a batch of its own and returns its loss.
        steps: how many batches.
        lr: at its highest.
        decay: of the moving average.
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
        smooth = None
        for _ in bar:
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
    model.load_state_dict(average.module.state_dict())
    model.eval().requires_grad_(False)


def batches(count: int, size: int) -> Iterable[slice]:
    """Slices of `size`, the last one shorter, that cover `count`."""
    return (slice(start, start + size) for start in range(0, count, size))
