"""One update of sharded tables for several lookups.

A fused kernel updates its tables in the backward pass of every lookup. Where several lookups belong to one optimizer
step (accumulated batches, or a table that is looked up twice), they are kept with the gradients of what they returned;
the step then looks all of them up again at once and runs the kernel's backward pass a single time. The rows have not
changed in between, so this is exactly the step that one large batch would have made, for every optimizer.

F features, B bags of one lookup, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor


class CollectedLookups:
    """The lookups of one sharded collection that wait for their update.

    Args:
        path: Path of the collection, for messages.
        module: The sharded collection.
    """

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path = path
        self.module = module
        self._waiting: list[tuple[KeyedJaggedTensor, dict[str, Tensor]]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, features: KeyedJaggedTensor, output: Any) -> Any:
        """Keep a lookup and return its output cut off from the kernel, ready to receive a gradient.

        Raises:
            ValueError: If features have different numbers of bags.
        """
        if features.variable_stride_per_key():
            raise ValueError(
                f"{self.path}: several lookups in one optimizer step need features with one number of bags each; "
                "leave stride_per_key_per_rank out, or use one lookup a step"
            )
        found = {name: values.detach().requires_grad_() for name, values in tensors(output).items()}
        self._waiting.append((features, found))
        if isinstance(output, KeyedTensor):
            return KeyedTensor(keys=output.keys(), length_per_key=output.length_per_key(), values=found[""])
        return {
            name: JaggedTensor(
                values=found[name],
                weights=jagged.weights_or_none(),
                lengths=jagged.lengths_or_none(),
                offsets=jagged.offsets_or_none(),
            )
            for name, jagged in output.items()
        }

    def clear_gradients(self) -> None:
        """Forget the gradients that have arrived, not the lookups: all ranks must make the same ones again."""
        for _, found in self._waiting:
            for values in found.values():
                values.grad = None

    def forget(self) -> None:
        """Drop everything, as a new fit does."""
        self._waiting = []

    def update(self) -> None:
        """Update the tables once for all lookups that wait. Every rank must call this."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        with torch.enable_grad():
            # `forward` and not a call: this is no lookup of the user's, and its ids have been checked.
            again = self.module.forward(concatenate([features for features, _ in waiting]))
            outputs = tensors(again.wait() if hasattr(again, "wait") else again)
        gradients = {
            name: torch.cat([_gradient(found[name]) for _, found in waiting]).to(values.dtype)
            for name, values in outputs.items()
        }
        trained = [name for name, values in outputs.items() if values.requires_grad]
        if trained:
            torch.autograd.backward([outputs[name] for name in trained], [gradients[name] for name in trained])


def concatenate(lookups: Sequence[KeyedJaggedTensor]) -> KeyedJaggedTensor:
    """Return the lookups as one: every feature has the bags of the first lookup, then those of the second, ...

    Example:
        >>> first = KeyedJaggedTensor(["a", "b"], values=torch.tensor([1, 2, 3]), lengths=torch.tensor([2, 1]))
        >>> both = concatenate([first, first])
        >>> both["a"].to_dense(), both["b"].to_dense()
        ([tensor([1, 2]), tensor([1, 2])], [tensor([3]), tensor([3])])
    """
    if len(lookups) == 1:
        return lookups[0]
    keys = lookups[0].keys()
    weighted = lookups[0].weights_or_none() is not None
    values: list[Tensor] = []
    weights: list[Tensor] = []
    for number in range(len(keys)):
        for features in lookups:
            ends = features.offset_per_key()
            part = slice(ends[number], ends[number + 1])
            values.append(features.values()[part])
            if weighted:
                weights.append(features.weights()[part])
    lengths_FB = [features.lengths().view(len(keys), features.stride()) for features in lookups]
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.cat(values),
        weights=torch.cat(weights) if weighted else None,
        lengths=torch.cat(lengths_FB, dim=1).flatten(),
        stride=sum(features.stride() for features in lookups),
    )


def tensors(output: Any) -> dict[str, Tensor]:
    """Return what a lookup gave: all of a bag collection under the empty name, a sequence collection's by feature."""
    if isinstance(output, KeyedTensor):
        return {"": output.values()}
    return {name: jagged.values() for name, jagged in output.items()}


def _gradient(values: Tensor) -> Tensor:
    return torch.zeros_like(values) if values.grad is None else values.grad
