"""``mvrec doctor``: what is installed, what does not fit, the command that mends it."""

from lightning_mvrec.doctor import main

__all__ = ["main"]
