"""How an embedding table is trained: one small object a table, whatever the plan.

A sharded table runs it as TorchRec's fused kernel, which updates the rows of a batch during the backward pass
(``Adagrad`` on CPU: :mod:`adagrad_rows`). A replicated table runs the same arithmetic on its averaged dense gradient.
R rows, D embedding width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode
from torch import Tensor


@dataclass(frozen=True)
class TableOptimizer(ABC):
    """The promise of a table optimizer: a fused kernel, and the same update on a dense gradient.

    Args:
        lr: Learning rate, at least 0.
    """

    lr: float

    kernel: ClassVar[EmbOptimType]
    #: Devices on which TorchRec has the fused kernel.
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    #: Name of each state in a checkpoint -> number of its dimensions (1: one value a row, 2: one a weight).
    states: ClassVar[dict[str, int]] = {}

    def __post_init__(self) -> None:
        if not self.lr >= 0:
            raise ValueError(f"{type(self).__name__}: lr must be at least 0, got {self.lr}")
        for name in ("eps", "weight_decay"):
            value = getattr(self, name, 0.0)
            if not value >= 0:
                raise ValueError(f"{type(self).__name__}: {name} must be at least 0, got {value}")

    def lacks(self, device_type: str, pooled: bool) -> str:
        """Return what TorchRec's fused kernel cannot do on a device (``pooled``: in a bag collection), if anything."""
        return "" if device_type in self.devices else f"TorchRec has no fused {type(self).__name__} on {device_type}"

    def fused_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the fused kernel, a new dict each time: TorchRec changes the one it is given."""
        return {"optimizer": self.kernel, "learning_rate": self.lr}

    def init_state(self, weight_RD: Tensor) -> dict[str, Tensor]:
        """Return the zero state of a replicated table."""
        shape = {1: weight_RD.shape[:1], 2: weight_RD.shape}
        return {
            name: torch.zeros(shape[dimensions], dtype=torch.float32, device=weight_RD.device)
            for name, dimensions in self.states.items()
        }

    @abstractmethod
    def update(self, weight_RD: Tensor, grad_RD: Tensor, state: dict[str, Tensor], lr: float, step: int) -> None:
        """Train a replicated table in place; ``step`` counts from 1."""


@dataclass(frozen=True)
class SGD(TableOptimizer):
    """Plain gradient descent, ``w -= lr * g``; no state.

    The fused kernel knows neither momentum nor weight decay, so neither is offered.

    Args:
        lr: Learning rate, at least 0.

    Example:
        >>> SGD(lr=0.1)
        SGD(lr=0.1)
    """

    kernel: ClassVar[EmbOptimType] = EmbOptimType.EXACT_SGD

    def update(self, weight_RD: Tensor, grad_RD: Tensor, state: dict[str, Tensor], lr: float, step: int) -> None:
        """Train a replicated table in place."""
        weight_RD.add_(grad_RD, alpha=-lr)


@dataclass(frozen=True)
class Adagrad(TableOptimizer):
    """Adagrad with one sum of squares a weight: ``s += g^2; w -= lr * g / (sqrt(s) + eps)``.

    Args:
        lr: Learning rate, at least 0.
        eps: Added to the denominator, at least 0.

    Example:
        >>> Adagrad(lr=0.1)
        Adagrad(lr=0.1, eps=1e-08)
    """

    eps: float = 1e-8

    kernel: ClassVar[EmbOptimType] = EmbOptimType.EXACT_ADAGRAD
    states: ClassVar[dict[str, int]] = {"sum": 2}

    def fused_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the fused kernel."""
        return {**super().fused_kwargs(), "eps": self.eps}

    def update(self, weight_RD: Tensor, grad_RD: Tensor, state: dict[str, Tensor], lr: float, step: int) -> None:
        """Train a replicated table in place."""
        state["sum"].addcmul_(grad_RD, grad_RD)
        weight_RD.addcdiv_(grad_RD, state["sum"].sqrt().add_(self.eps), value=-lr)


@dataclass(frozen=True)
class RowWiseAdagrad(TableOptimizer):
    """Adagrad with one sum a row: ``s += mean(g^2); w -= lr * g / (sqrt(s) + eps)``. The usual choice for big tables.

    Weight decay is decoupled, and of the rows of the batch only: ``w -= lr * weight_decay * w`` beside the above. On
    CPU the fused kernel of a bag collection does not know it; that of an ``EmbeddingCollection`` does.

    Args:
        lr: Learning rate, at least 0.
        eps: Added to the denominator, at least 0.
        weight_decay: Part of a touched row that goes in each step, times ``lr``; at least 0. A replicated table takes a
            row with a gradient of exactly 0 for untouched.

    Example:
        >>> RowWiseAdagrad(lr=0.1)
        RowWiseAdagrad(lr=0.1, eps=1e-08)
    """

    eps: float = 1e-8
    weight_decay: float = 0.0

    kernel: ClassVar[EmbOptimType] = EmbOptimType.EXACT_ROWWISE_ADAGRAD
    states: ClassVar[dict[str, int]] = {"sum": 1}

    def lacks(self, device_type: str, pooled: bool) -> str:
        """Return what TorchRec's fused kernel cannot do on a device."""
        if self.weight_decay and pooled and device_type == "cpu":
            return "TorchRec's fused RowWiseAdagrad ignores weight_decay on cpu in an EmbeddingBagCollection"
        return super().lacks(device_type, pooled)

    def fused_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the fused kernel."""
        decay: dict[str, Any] = {}
        if self.weight_decay:
            # Without a mode, which is the default, the kernel ignores the decay.
            decay = {"weight_decay": self.weight_decay, "weight_decay_mode": WeightDecayMode.DECOUPLE}
        return {**super().fused_kwargs(), "eps": self.eps, **decay}

    def __repr__(self) -> str:
        decay = f", weight_decay={self.weight_decay}" if self.weight_decay else ""
        return f"RowWiseAdagrad(lr={self.lr}, eps={self.eps}{decay})"

    def update(self, weight_RD: Tensor, grad_RD: Tensor, state: dict[str, Tensor], lr: float, step: int) -> None:
        """Train a replicated table in place."""
        state["sum"].add_(grad_RD.square().mean(dim=1))
        if self.weight_decay:
            touched_R = grad_RD.count_nonzero(dim=1).bool()
            weight_RD.mul_(torch.where(touched_R, 1 - lr * self.weight_decay, 1.0)[:, None])
        weight_RD.addcdiv_(grad_RD, state["sum"].sqrt().add_(self.eps)[:, None], value=-lr)


@dataclass(frozen=True)
class Adam(TableOptimizer):
    """Adam on the rows of the batch only, with decoupled weight decay, as TorchRec's CUDA kernel does it.

    Rows that a batch does not touch keep weight and moments (the bias correction counts all steps). There is no CPU
    kernel: on CPU a table with Adam must be replicated. A replicated table takes a row with a gradient of exactly 0
    for untouched.

    Args:
        lr: Learning rate, at least 0.
        betas: Decay of the two moments, each in ``[0, 1)``.
        eps: Added to the denominator, at least 0.
        weight_decay: Part of a touched row that goes in each step, times ``lr``; at least 0.

    Example:
        >>> Adam(lr=0.001)
        Adam(lr=0.001, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    kernel: ClassVar[EmbOptimType] = EmbOptimType.ADAM
    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    states: ClassVar[dict[str, int]] = {"exp_avg": 2, "exp_avg_sq": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"Adam: betas must be in [0, 1), got {self.betas}")

    def fused_kwargs(self) -> dict[str, Any]:
        """Return the arguments of the fused kernel."""
        return {
            **super().fused_kwargs(),
            "beta1": self.betas[0],
            "beta2": self.betas[1],
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def update(self, weight_RD: Tensor, grad_RD: Tensor, state: dict[str, Tensor], lr: float, step: int) -> None:
        """Train a replicated table in place."""
        row = grad_RD.count_nonzero(dim=1).nonzero().squeeze(1)
        grad, (beta1, beta2) = grad_RD[row], self.betas
        mean = state["exp_avg"][row].mul_(beta1).add_(grad, alpha=1 - beta1)
        square = state["exp_avg_sq"][row].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        state["exp_avg"][row] = mean
        state["exp_avg_sq"][row] = square
        change = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + self.eps)
        weight_RD[row] -= lr * (change + self.weight_decay * weight_RD[row])
