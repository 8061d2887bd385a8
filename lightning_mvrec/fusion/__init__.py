"""Fusion: the views of a row in, one user state and the weight of each view out."""

from lightning_mvrec.fusion.base import Fusion, ViewState, ViewStates
from lightning_mvrec.fusion.concat import ConcatFusion
from lightning_mvrec.fusion.gate import GateFusion
from lightning_mvrec.fusion.target_attention import TargetAttentionFusion

__all__ = ["ConcatFusion", "Fusion", "GateFusion", "TargetAttentionFusion", "ViewState", "ViewStates"]
