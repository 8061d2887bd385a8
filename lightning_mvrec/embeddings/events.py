"""What an event says beside its item: rating, dwell time, kind, and when it happened.

B users, T steps (right-padded), F features of an event, D embedding width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_mvrec.schema import View

DAY = 86_400
WEEK = 7 * DAY
# 1970-01-01 was a Thursday: four days into a week that starts on Sunday.
EPOCH_IN_WEEK = 4 * DAY
NUM_TIME_FEATURES = 5


def time_features(times_BT: Tensor) -> Tensor:
    """Describe event times, in seconds since the epoch, as five small numbers.

    0: ``log1p`` of the seconds since the previous event of the row, divided by ``log1p`` of a day (1.0 is a day; 0 for
    the first event and where times run backwards); 1, 2: sine and cosine of the time of day (UTC); 3, 4: sine and
    cosine of the time of the week.

    Shape:
        - times: ``(B, T)`` int64, oldest first.
        - output: ``(B, T, 5)`` float32 in [-1, 1], but for the gap, which reaches about 1.8 after ten years.

    Example:
        >>> noon, next_noon = 43_200, 129_600
        >>> time_features(torch.tensor([[noon, next_noon]]))[0, :, :3].abs().round(decimals=3).tolist()
        [[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    """
    gap_BT = torch.diff(times_BT, dim=1, prepend=times_BT[:, :1]).clamp(min=0)
    # Whole seconds are reduced as integers: float32 cannot tell seconds apart since 1970.
    day_BT = (times_BT % DAY).float() * (2 * math.pi / DAY)
    week_BT = ((times_BT + EPOCH_IN_WEEK) % WEEK).float() * (2 * math.pi / WEEK)
    return torch.stack(
        [gap_BT.float().log1p() / math.log1p(DAY), day_BT.sin(), day_BT.cos(), week_BT.sin(), week_BT.cos()], dim=-1
    )


class EventEmbedding(nn.Module):
    """Let an event's fields and time change its item's vector: ``x * (1 + scale(event)) + shift(event)``.

    ``scale`` and ``shift`` are linear in the event's numeric fields and time features, plus one row each for every
    categorical field. All start at 0, so the module starts as the identity; a view without fields or times keeps it.
    The product lets a low rating turn a vector round, which a sum cannot. Its tables are small and dense.

    Args:
        embedding_dim: Width ``D``.
        view: Which fields its events have. Numeric ones should be of order 1.
        times: Whether to read event times (seconds since the epoch): see :func:`time_features`.

    Shape:
        - x: ``(B, T, D)`` item vectors.
        - fields: ``(B, T)`` for each field of the view: float for numeric, int64 rows in ``[0, size)`` for categorical
          ones. Fields that the view does not name have no effect.
        - times: ``(B, T)`` int64, oldest first; read only with ``times``.
        - lengths: ``(B,)`` int in ``[0, T]``.
        - output: ``(B, T, D)``; padded steps are finite.

    Raises:
        ValueError: If a field is multi-hot, or missing from the batch.

    Example:
        >>> from lightning_mvrec.schema import Field
        >>> module = EventEmbedding(4, View("rating", fields=(Field("stars", "numeric"),)), times=True)
        >>> x, times = torch.ones(1, 2, 4), torch.tensor([[0, 60]])
        >>> torch.equal(module(x, {"stars": torch.tensor([[0.2, 1.0]])}, times, torch.tensor([2])), x)
        True
    """

    def __init__(self, embedding_dim: int, view: View, times: bool = False) -> None:
        super().__init__()
        for field in view.fields:
            if field.kind == "multi_hot":
                raise ValueError(f"field {field.name!r} of view {view.name!r} must be numeric or categorical")
        self.view_name = view.name
        self.times = times
        self.numeric = [field.name for field in view.fields if field.kind == "numeric"]
        self.categorical = [field.name for field in view.fields if field.kind == "categorical"]
        num_features = len(self.numeric) + NUM_TIME_FEATURES * times
        # Scale and shift side by side; no layer where there is nothing to read, for it would be an idle parameter.
        self.dense = nn.Linear(num_features, 2 * embedding_dim, bias=False) if num_features else None
        self.tables = nn.ModuleList(
            nn.Embedding(field.size, 2 * embedding_dim) for field in view.fields if field.kind == "categorical"
        )
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x_BTD: Tensor, fields_BT: dict[str, Tensor], times_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the item vectors as the events change them."""
        missing = [name for name in [*self.numeric, *self.categorical] if name not in fields_BT]
        if missing:
            raise ValueError(f"events of view {self.view_name!r} must have the fields {missing}, got {list(fields_BT)}")
        features = [fields_BT[name].to(x_BTD.dtype)[..., None] for name in self.numeric]
        if self.times:
            # Padding is a jump back to 0, which is no gap: time_features clamps it.
            features.append(time_features(times_BT).to(x_BTD.dtype))
        effects = [table(fields_BT[name]) for name, table in zip(self.categorical, self.tables, strict=True)]
        if self.dense is not None:
            effects.append(self.dense(torch.cat(features, dim=-1)))
        if not effects:
            return x_BTD
        scale_BTD, shift_BTD = torch.stack(effects).sum(0).chunk(2, dim=-1)
        return x_BTD * (1 + scale_BTD) + shift_BTD
