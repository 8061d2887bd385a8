"""Jagged histories to right-padded ones, and the state a row may look at.

B users, T steps (right-padded), E events over all users, M distinct items, R rows, D embedding width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from lightning_mvrec.functional.rows import take_rows


def padded_index(lengths_B: Tensor, num_events: int, num_steps: int | None = None) -> Tensor:
    """Say which event stands at each padded step; ``num_events`` itself stands for "none".

    Args:
        lengths_B: ``(B,)`` int, events of each user, consecutive and in user order.
        num_events: Events ``E`` over all users.
        num_steps: Steps ``T`` of the result, at least the longest length; None: the longest length. A number given
            saves one wait for the device, and is trusted.

    Returns:
        ``(B, T)`` int64 in ``[0, E]``.

    Raises:
        ValueError: If the lengths do not sum up to ``num_events`` (checked where ``num_steps`` is None).

    Example:
        >>> padded_index(torch.tensor([2, 0, 1]), num_events=3).tolist()
        [[0, 1], [3, 3], [2, 3]]
    """
    lengths_B = lengths_B.long()
    end_B = lengths_B.cumsum(0)
    if num_steps is None:
        num_steps = 0
        total = 0
        if lengths_B.numel() > 0:
            num_steps, total = torch.stack([lengths_B.max(), end_B[-1]]).tolist()  # one wait for the device, not two
        if total != num_events:
            raise ValueError(f"lengths_B must sum up to the number of values, {num_events}, got {total}")
    step_T = torch.arange(num_steps, device=lengths_B.device)
    index_BT = (end_B - lengths_B)[:, None] + step_T
    return index_BT.masked_fill(step_T >= lengths_B[:, None], num_events)


def to_padded(values_E: Tensor, lengths_B: Tensor, num_steps: int | None = None) -> Tensor:
    """Lay jagged values out as one right-padded row per user; padding is 0.

    Args:
        values_E: ``(E, ...)`` of any type; user ``b`` owns ``lengths_B[b]`` consecutive values.
        lengths_B: ``(B,)`` int.
        num_steps: See :func:`padded_index`.

    Returns:
        ``(B, T, ...)``; ``T`` is the longest length unless given.

    Raises:
        ValueError: If the lengths do not sum up to ``E`` (checked where ``num_steps`` is None).

    Example:
        >>> to_padded(torch.tensor([5, 6, 7]), torch.tensor([2, 0, 1])).tolist()
        [[5, 6], [0, 0], [7, 0]]
    """
    num_events = values_E.shape[0]
    index_BT = padded_index(lengths_B, num_events, num_steps)
    # One row of zeros at the end for the padding to point to: no masking, and E = 0 needs no special case.
    extended = torch.cat([values_E, values_E.new_zeros(1, *values_E.shape[1:])])
    return extended.index_select(0, index_BT.flatten()).unflatten(0, index_BT.shape)


def gather_padded(item_MD: Tensor, position_E: Tensor, lengths_B: Tensor, num_steps: int | None = None) -> Tensor:
    """Look up each event's item vector and lay the events out right-padded; padding is 0.

    Args:
        item_MD: ``(M, D)`` vectors of the batch's distinct items.
        position_E: ``(E,)`` int64 in ``[0, M)``.
        lengths_B: ``(B,)`` int.
        num_steps: See :func:`padded_index`.

    Returns:
        ``(B, T, D)``.

    Raises:
        ValueError: If the lengths do not sum up to ``E`` (checked where ``num_steps`` is None).

    Example:
        >>> gather_padded(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 0]), torch.tensor([2, 0])).flatten().tolist()
        [2.0, 1.0, 0.0, 0.0]
    """
    num_items = item_MD.shape[0]
    index_BT = padded_index(lengths_B, position_E.shape[0], num_steps)
    position_BT = torch.cat([position_E, position_E.new_full((1,), num_items)])[index_BT]
    return take_rows(item_MD, position_BT)


def last_state(h_BTD: Tensor, asof_R: Tensor, user_R: Tensor) -> Tensor:
    """Take the state after the ``asof``-th step of each row's user: 0 where ``asof`` is 0.

    Args:
        h_BTD: ``(B, T, D)`` states of one view.
        asof_R: ``(R,)`` int64 in ``[0, T]``, how many steps the row may look at.
        user_R: ``(R,)`` int64 in ``[0, B)``.

    Returns:
        ``(R, D)``.

    Example:
        >>> last_state(torch.tensor([[[1.0], [2.0]]]), torch.tensor([0, 2]), torch.tensor([0, 0])).flatten().tolist()
        [0.0, 2.0]
    """
    num_users, num_steps, dim = h_BTD.shape
    # A zero step in front is the state of "nothing seen yet"; it also keeps the graph whole where T is 0.
    start_BTD = functional.pad(h_BTD, (0, 0, 1, 0))
    return start_BTD.reshape(num_users * (num_steps + 1), dim).index_select(0, user_R * (num_steps + 1) + asof_R)
