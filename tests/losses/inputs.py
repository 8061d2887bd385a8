"""Loss inputs made by hand."""

import torch

from lightning_mvrec.losses import LossInput


def make_input(rows=6, items=9, dim=4, negatives=None, seed=0, dtype=torch.float32, **changes):
    """Random vectors; targets among items 1 and above; ``negatives``: None, ``(N,)`` or ``(rows, N)`` of numbers."""
    generator = torch.Generator().manual_seed(seed)
    values = {
        "user_RD": torch.randn(rows, dim, generator=generator, dtype=dtype).requires_grad_(),
        "item_MD": torch.randn(items, dim, generator=generator, dtype=dtype).requires_grad_(),
        "target_R": torch.randint(1, items, (rows,), generator=generator),
        "label_R": torch.ones(rows, dtype=dtype),
        "weight_R": torch.rand(rows, generator=generator, dtype=dtype) + 0.5,
        "total_weight": 3.0,
        "catalogue": True,
    }
    if negatives is not None:
        size = negatives if isinstance(negatives, tuple) else (negatives,)
        values["negative"] = torch.randint(1, items, size, generator=generator)
        values["log_q_negative"] = torch.rand(size, generator=generator, dtype=dtype).log()
    return LossInput(**{**values, **changes})


def both_layouts(inputs):
    """Return negatives and their log q as ``(rows, N)``, whichever layout they have."""
    rows = len(inputs.target_R)
    return inputs.negative.expand(rows, -1), inputs.log_q_negative.expand(rows, -1)
