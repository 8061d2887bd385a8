"""Updates of sharded tables that wait for the optimizer step.

A fused kernel updates its tables in the backward pass of every lookup. Where several lookups belong to one optimizer
step, or where something is to happen to the gradient before it is used (clipping), the kernel's output is cut off from
it: the backward pass then ends at the kernel, on the rank that owns the rows, and leaves there what the kernel would
have received. The step hands all of it over at once. No row has changed in between, so this is exactly the step that
one large batch would have made, for every optimizer and plan.

F features, B bags of one lookup, N ids, U distinct rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import PoolingMode
from torch import Tensor

from lightning_mvrec.strategies.row_gradients import Layout, Lookup, Rows, join
from lightning_mvrec.strategies.sequences import bag_offsets

#: Rows given to a kernel at once where each needs a bag of its own: bounds what the other tables' empty bags take.
CHUNK_ROWS = 4096


@dataclass
class Waiting:
    """A lookup and what became of its answer: ``given`` stands for ``output`` in the user's graph."""

    lookup: Lookup
    output: Tensor
    given: Tensor
    lr: float


class HeldKernel:
    """One fused kernel of this rank, whose updates can wait.

    Args:
        path: Path of its collection, for messages.
        kernel: fbgemm's kernel; its forward hook is put on here.
        trained: Whether its tables are trained; those of a frozen one stay as they are.
        replicated: Whether other ranks hold the same rows: :mod:`peers` must add theirs before every update.
    """

    def __init__(self, path: str, kernel: Any, trained: bool, replicated: bool = False) -> None:
        self.path = path
        self.kernel = kernel
        self.trained = trained
        self.replicated = replicated
        #: Whether the lookups that come now wait.
        self.hold = False
        self._waiting: list[Waiting] = []
        self._largest: float | None = None
        self._shared: list[Lookup] = []
        self._features = len(kernel.feature_table_map)
        self.layout = Layout(kernel)
        kernel.register_forward_hook(self._cut, with_kwargs=True)

    def __len__(self) -> int:
        return len(self._waiting)

    def forget(self) -> None:
        """Drop everything, as a new fit does."""
        self._waiting, self._largest, self._shared = [], None, []

    def clear_gradients(self) -> None:
        """Forget the gradients that have arrived, not the lookups: theirs may be on the way."""
        self._shared = []
        for waiting in self._waiting:
            waiting.given.grad = None

    @torch.no_grad()
    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply all gradients that have arrived."""
        for lookup in self._next():
            lookup.gradient.mul_(factor.to(lookup.gradient.device))

    def limit_gradients(self, largest: float) -> None:
        """Let the next update move every element of a row's summed gradient into ``[-largest, largest]``."""
        self._largest = largest

    @torch.no_grad()
    def square_norm(self) -> Tensor:
        """Return the sum of squares of the gradient of this rank's rows, each summed over all ids that mean it."""
        total = torch.zeros((), dtype=torch.float64, device=self.kernel.D_offsets.device)
        if self.trained:
            for _, _, gradient_UD in self.layout.rows(self._next()):
                total += gradient_UD.float().square().sum()
        return total

    def take(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what is to be given to peers, flat, and forget that it has arrived here.

        Ids, lengths of the bags of each feature, gradients, weights of ids if there are any.
        """
        arrived = self._arrived() if self.trained else []
        for waiting in self._waiting:
            waiting.given.grad = None
        device = self.kernel.D_offsets.device
        whole, real = torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device)
        if not arrived:
            return whole, whole, real, real
        joined = join(arrived, self._pooled)
        return (
            joined.ids_N.long(),
            joined.lengths_FB.flatten().long(),
            joined.gradient.flatten().float(),
            real if joined.weights_N is None else joined.weights_N.float(),
        )

    def put(self, ids_N: Tensor, lengths: Tensor, gradient: Tensor, weights: Tensor) -> None:
        """Add what a peer has taken to the next update."""
        if not len(ids_N):
            return
        answers = len(lengths) // self._features if self._pooled else len(ids_N)
        offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
        weights_N = weights if len(weights) else None
        self._shared.append(Lookup(ids_N, offsets, weights_N, self._features, gradient.view(answers, -1)))

    def update(self, prepare: Callable[[], object]) -> None:
        """Update the tables once for all that waits. Ranks need not agree.

        Args:
            prepare: Called before each look of the kernel at its settings (learning rate, number of steps).
        """
        waiting, lookups, largest = self._waiting, self._next(), self._largest
        self.forget()
        if not lookups or not self.trained:
            return
        with torch.enable_grad():
            if largest is not None:
                self._update_rows(lookups, largest, prepare)
            elif len(waiting) == 1 and not self.replicated and waiting[0].lr == self.kernel.get_learning_rate():
                torch.autograd.backward(waiting[0].output, waiting[0].given.grad)
            else:
                prepare()
                self._update_lookups(lookups)

    @property
    def _pooled(self) -> bool:
        return self.kernel.pooling_mode != PoolingMode.NONE

    def _arrived(self) -> list[Lookup]:
        """Return the lookups whose gradients have arrived on this rank."""
        found = []
        for waiting in self._waiting:
            if waiting.given.grad is not None:
                waiting.lookup.grad = waiting.given.grad
                found.append(waiting.lookup)
        return found

    def _next(self) -> list[Lookup]:
        """Return the lookups that the next update concerns."""
        return self._shared if self.replicated else self._arrived()

    def _refuse(self, gradient: Tensor) -> None:
        raise RuntimeError(
            f"{self.path}: a backward pass outside of training_step would train its tables in one replica group only. "
            "Look up in training_step, or leave replica_groups out"
        )

    def _cut(self, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if not output.requires_grad:
            return None
        if not self.hold:
            if self.replicated and self.trained:
                output.register_hook(self._refuse)
            return None
        if kwargs.get("batch_size_per_feature_per_rank") is not None:
            raise ValueError(
                f"{self.path}: clipped or accumulated gradients, and those of replica groups, need features with one "
                "number of bags each; leave stride_per_key_per_rank out of the KeyedJaggedTensor"
            )
        given = output.detach().requires_grad_()
        lookup = Lookup(kwargs["indices"], kwargs["offsets"], kwargs.get("per_sample_weights"), self._features)
        self._waiting.append(Waiting(lookup, output, given, kernel.get_learning_rate()))
        return given

    def _update_lookups(self, lookups: Sequence[Lookup]) -> None:
        """Run the kernel on all lookups as one."""
        joined = join(lookups, self._pooled)
        output = self.kernel.forward(indices=joined.ids_N, offsets=joined.offsets, per_sample_weights=joined.weights_N)
        torch.autograd.backward(output, joined.gradient.to(output.dtype))

    def _update_rows(self, lookups: Sequence[Lookup], largest: float, prepare: Callable[[], object]) -> None:
        """Run the kernel on the distinct rows, each looked up once, with its summed and limited gradient."""
        first_of = [features[0] for features in self.layout.tables]
        found = [
            (first_of[table], ids, grad.clamp(-largest, largest)) for table, ids, grad in self.layout.rows(lookups)
        ]
        if not found:
            return
        most = max(len(ids) for _, ids, _ in found)
        size = CHUNK_ROWS if self._pooled else most
        for first in range(0, most, size):
            part = slice(first, first + size)
            self._backward([(feature, ids[part], grad[part]) for feature, ids, grad in found], prepare)

    def _backward(self, rows: Sequence[Rows], prepare: Callable[[], object]) -> None:
        counts = [0] * self._features
        for feature, ids_U, _ in rows:
            counts[feature] = len(ids_U)
        ids = torch.cat([ids_U for _, ids_U, _ in rows])
        prepare()
        output = self.kernel.forward(indices=ids, offsets=bag_offsets(counts, max(counts), ids.device))
        if self._pooled:
            gradient = torch.zeros_like(output)
            for feature, ids_U, gradient_UD in rows:
                columns = slice(self.layout.columns[feature], self.layout.columns[feature + 1])
                gradient[: len(ids_U), columns] = gradient_UD
        else:
            gradient = torch.cat([gradient_UD for _, _, gradient_UD in rows])
        torch.autograd.backward(output, gradient.to(output.dtype))
