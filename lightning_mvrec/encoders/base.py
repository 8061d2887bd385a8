"""What every sequence encoder promises.

B users, T steps (right-padded), D embedding width.
"""

import torch
from torch import Tensor, nn

from lightning_mvrec.functional.jagged import last_state


class SequenceEncoder(nn.Module):
    """Read one view's history and return a state after each of its events.

    The first argument of every encoder's constructor is ``embedding_dim``; all others have defaults, so that a recipe
    names the class and the model gives the width.

    Attributes:
        causal: Whether step ``t`` has seen only steps ``0 .. t``. A model refuses an encoder that is not causal when
            a user has more than one target in a batch: it would see the later ones.
        own_table: Whether the model must give the view an item table of its own (``bag_<view>``) instead of the
            shared one, with no fields or times added.

    Shape:
        - x: ``(B, T, D)`` float; steps from ``lengths`` on are padding: finite, no effect.
        - lengths: ``(B,)`` int in ``[0, T]``.
        - output: ``(B, T, D)``; padded steps are 0. ``T = 0`` and ``B = 0`` are allowed.
    """

    causal: bool = True
    own_table: bool = False

    def forward(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the state after each step."""
        raise TypeError(f"{type(self).__name__} must define forward(x_BTD, lengths_B)")

    def last(self, x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
        """Return ``(B, D)``, the state after each user's last event; 0 for a user without events.

        All that an evaluation with one target a user reads. An encoder that can make it without the states of all
        other steps overrides this; the numbers are those of :meth:`forward` but for the order of sums.
        """
        user_B = torch.arange(x_BTD.shape[0], device=x_BTD.device)
        return last_state(self(x_BTD, lengths_B), lengths_B.long(), user_B)
