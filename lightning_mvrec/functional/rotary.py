"""Positions as angles: queries and keys are turned, so that their product knows how far apart they stand.

T steps, d channels of one attention head.
"""

import torch
from torch import Tensor

BASE = 10_000.0


def rotate(x_Td: Tensor, step_T: Tensor | None = None) -> Tensor:
    """Turn channels ``i`` and ``i + d / 2`` of step ``t``, as one complex number, by ``t * 10000 ** (-2 i / d)``.

    The product of a turned query and a turned key depends on the two and on the number of steps between them alone. Su
    et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).

    Args:
        x_Td: Queries or keys.
        step_T: The step of each; None: 0, 1, 2 ... along the last dimension but one.

    Shape:
        - x: ``(..., T, d)`` float, ``d`` even; step: of a shape that broadcasts to ``(..., T)``.
        - output: as the input.

    Raises:
        ValueError: If ``d`` is odd.

    Example:
        >>> x_Td = rotate(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        >>> [round(value, 4) for value in x_Td[1].tolist()]  # cos(1), sin(1)
        [0.5403, 0.8415]
    """
    channels = x_Td.shape[-1]
    if channels % 2:
        raise ValueError(f"a head must have an even number of channels to be rotated, got {channels}")
    half = channels // 2
    # In float32 whatever x is: bfloat16 cannot tell neighbouring steps apart beyond the first few hundred.
    if step_T is None:
        step_T = torch.arange(x_Td.shape[-2], device=x_Td.device)
    speed_h = BASE ** (-torch.arange(half, device=x_Td.device, dtype=torch.float32) / half)
    angle_Th = step_T.float()[..., None] * speed_h
    cos_Th, sin_Th = angle_Th.cos().to(x_Td.dtype), angle_Th.sin().to(x_Td.dtype)
    real_Th, imaginary_Th = x_Td[..., :half], x_Td[..., half:]
    return torch.cat([real_Th * cos_Th - imaginary_Th * sin_Th, real_Th * sin_Th + imaginary_Th * cos_Th], dim=-1)
