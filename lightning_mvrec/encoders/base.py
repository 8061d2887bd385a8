"""What every sequence encoder promises.

B users, T steps (right-padded), D embedding width.
"""

from torch import Tensor, nn


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
