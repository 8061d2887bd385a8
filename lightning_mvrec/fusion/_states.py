"""Stacking the views of a batch, and dropping whole ones.

R rows, V views, D embedding width.
"""

import torch
from torch import Tensor

from lightning_mvrec.fusion.base import ViewStates


def check_view_names(view_names: list[str]) -> list[str]:
    """Return the names if there is at least one and none comes twice.

    Raises:
        ValueError: Otherwise.
    """
    if not view_names or len(set(view_names)) < len(view_names):
        raise ValueError(f"view_names must be at least one name and no name twice, got {view_names}")
    return list(view_names)


def stack_views(states: ViewStates, view_names: list[str]) -> tuple[Tensor, Tensor]:
    """Return states ``(R, V, D)`` and presence ``(R, V)`` bool in the order of ``view_names``.

    Raises:
        ValueError: If a view is missing.
    """
    missing = [name for name in view_names if name not in states.views]
    if missing:
        raise ValueError(f"states must hold the views {view_names}, {missing} are missing")
    views = [states.views[name] for name in view_names]
    state_RVD = torch.stack([view.state_RD for view in views], dim=1)
    present_RV = torch.stack([view.present_R for view in views], dim=1)
    return state_RVD, present_RV


def needed(value: Tensor | None, argument: str, view: str, reader: str) -> Tensor:
    """Return an argument of a view's state that a fusion cannot do without.

    Raises:
        ValueError: If it is None.
    """
    if value is None:
        raise ValueError(f"{argument} of view {view!r} must be given: {reader} reads it, got None")
    return value


def drop_views(present_RV: Tensor, probability: float) -> Tensor:
    """Mark each present view as absent with a probability; a row that would lose every view loses none."""
    kept_RV = present_RV & (torch.rand(present_RV.shape, device=present_RV.device) >= probability)
    return torch.where(kept_RV.any(dim=1, keepdim=True), kept_RV, present_RV)
