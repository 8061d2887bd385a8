"""Which steps are real, and batches too small for a library's kernels.

B users, T steps (right-padded), D embedding width.
"""

import torch
from torch import Tensor
from torch.nn import functional


def real_steps(lengths_B: Tensor, num_steps: int) -> Tensor:
    """Return ``(B, T, 1)`` bool: whether a step is an event and not padding."""
    step_T = torch.arange(num_steps, device=lengths_B.device)
    return (step_T < lengths_B[:, None])[..., None]


def at_least_one(x_BTD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """Add a padded user or step where there is none.

    Kernels of convolution, recurrence and attention refuse empty inputs, but an encoder must run on every rank: one
    skipped leaves its parameters without a gradient and data-parallel training raises. The caller cuts the result
    back with ``[:B, :T]``.
    """
    users, steps, _ = x_BTD.shape
    add_users, add_steps = int(users == 0), int(steps == 0)
    if add_users or add_steps:
        x_BTD = functional.pad(x_BTD, (0, 0, 0, add_steps, 0, add_users))
        lengths_B = functional.pad(lengths_B, (0, add_users))
    return x_BTD, lengths_B


def check_dropout(name: str, value: float) -> float:
    """Return ``value`` if it is a probability below 1.

    Raises:
        ValueError: Otherwise.
    """
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return value


def check_positive(name: str, value: int, unit: str) -> int:
    """Return ``value`` if it is at least 1.

    Raises:
        ValueError: Otherwise.
    """
    if value < 1:
        raise ValueError(f"{name} must be at least 1 {unit}, got {value}")
    return value
