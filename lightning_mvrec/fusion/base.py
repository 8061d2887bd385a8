"""What every fusion reads and returns.

R rows (one (user, target step) pair each), B users, T steps, C candidates, V views, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class ViewState:
    """One view as it stood just before each row's target.

    The model gives everything. By hand, state and presence do for a fusion that reads no more; one that needs what is
    None says so.

    Args:
        state_RD: ``(R, D)`` the encoder's state at step ``asof - 1``; 0 where there is none.
        present_R: ``(R,)`` bool, whether the view had any event by then.
        age_R: ``(R,)`` float, seconds since the view's latest event by then (0 where absent; steps where a source has
            no times).
        asof_R: ``(R,)`` int64, how many of ``steps_BTD`` a row may look at.
        steps_BTD: ``(B, T, D)`` all states of the view, right-padded; None in an evaluation where the fusion says
            that it does not read them.
        lengths_B: ``(B,)`` int64.
        times_BT: ``(B, T)`` int64 event times, right-padded with 0.
    """

    state_RD: Tensor
    present_R: Tensor
    age_R: Tensor | None = None
    asof_R: Tensor | None = None
    steps_BTD: Tensor | None = None
    lengths_B: Tensor | None = None
    times_BT: Tensor | None = None


@dataclass
class ViewStates:
    """All views of a batch, in the model's order, and which user each row belongs to.

    Args:
        views: By name; the user's own vector is a view named ``"user"`` of length one.
        user_R: ``(R,)`` int64 in ``[0, B)``.
    """

    views: dict[str, ViewState]
    user_R: Tensor


class Fusion(nn.Module):
    """Join the views of a row into one user state.

    The first two arguments of every fusion's constructor are ``embedding_dim: int`` and ``view_names: list[str]``.

    Attributes:
        target_aware: Whether the user state depends on the candidate. Such a model cannot be searched as an index; it
            re-ranks the candidates of one that can.
        reads_steps: Whether ``steps_BTD`` is read: an evaluation need not compute them for a fusion that says no.

    Shape:
        - states: see :class:`ViewStates`.
        - candidates: ``(R, C, D)`` item vectors, or None; read only where ``target_aware``.
        - output: ``(R, D)``, or ``(R, C, D)`` where ``target_aware``; and view weights ``(R, V)``, rows summing to 1
          over the views that are present (all 0 where none is); an absent view has weight 0.
    """

    target_aware: bool = False
    reads_steps: bool = True

    def forward(self, states: ViewStates, candidates_RCD: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the user state and the weight of each view."""
        raise TypeError(f"{type(self).__name__} must define forward(states, candidates_RCD)")
