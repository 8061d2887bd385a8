"""What happens around a lookup: ids are checked where they are sent from, ranks are evened out, repeats refused.

F features, B bags a rank has, M the most bags any rank has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.types import LazyAwaitable
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from lightning_mvrec.strategies.exchanges import CheckedIds, Exchange, ExchangedForward, Habit, readable
from lightning_mvrec.strategies.guards import check_pipeline
from lightning_mvrec.strategies.tables import Table


class LookupGuard:
    """Forward hooks of one collection.

    * An id outside its table raises here; a kernel would map it to another row and train that.
    * A row-wise bag collection fails in its backward pass when ranks have different numbers of bags, so the smaller
      ones are padded with empty bags and the result is cut again. The gradient is exact.
    * A batch without any bag, which TorchRec cannot read, is looked up as one empty bag; the result is cut again.
    * A second lookup in one optimizer step would make a second update. It is refused, or where updates wait for the
      step (``hold``) all of them make one.
    * The columns of a sharded bag collection's ``values()`` come in the order of its kernels, which depends on pooling,
      optimizers and plan; they are put into that of the collection as it was.
    * A kernel looks at its learning rate when it is asked for rows, so it is told before (``prepare``).
    * One key of a result is a tensor: see :class:`WholeItems`.

    Args:
        path: Path of the collection, for messages.
        tables: The tables of the collection.
        pad: Whether ranks must have the same number of bags.
        once: Whether one training step may look it up only once.
        order: Keys of the unsharded bag collection's result, in order; None for a sequence collection.
        check_ids: Whether to look for ids outside a table: one pass over the ids, on CUDA a wait for the device.
    """

    def __init__(
        self,
        path: str,
        tables: Sequence[Table],
        pad: bool,
        once: bool,
        order: Sequence[str] | None = None,
        check_ids: bool = True,
    ) -> None:
        self.path = path
        self.pad = pad
        self.once = once
        self.order = order
        self.check_ids = check_ids
        self.in_training_step = False
        #: Whether updates wait for the optimizer step.
        self.hold = False
        #: Called before a lookup in a training step.
        self.prepare: Callable[[], object] | None = None
        #: Called with the ids of a lookup before anything else, while ranks have different numbers of batches.
        self.announce: Callable[[KeyedJaggedTensor], None] | None = None
        #: How many lookups have begun.
        self.lookups = 0
        #: Whether a backward pass may come without an optimizer step after it: with manual optimization.
        self.watch_backward = False
        #: What training steps look up, while look-ahead learns it.
        self.seen: list[KeyedJaggedTensor] | None = None
        #: For each lookup of this training step, the exchange that began a step ago, if one did.
        self.sent: list[Exchange | None] = []
        self._exchange: Exchange | None = None
        self._habit = Habit()
        self._training = False
        self._looked_up = False
        self._updated = False
        #: The number of bags that the result of the lookup under way must be cut to, unless its exchange knows.
        self._bags: int | None = None
        #: Feature -> the smallest table that reads it.
        self.limits: dict[str, Table] = {}
        for table in tables:
            for feature in table.config.feature_names:
                known = self.limits.get(feature)
                if known is None or table.config.num_embeddings < known.config.num_embeddings:
                    self.limits[feature] = table

    def attach(self, module: nn.Module) -> None:
        """Put the hooks on a collection."""
        if self.pad:
            module.forward = ExchangedForward(module, self.under_way)
        module.register_forward_pre_hook(self._before, with_kwargs=True)
        if self.order is not None and list(self.order) == list(module._embedding_names):  # type: ignore[arg-type]
            self.order = None  # as it was: nothing to put right
        module.register_forward_hook(self._after)

    def start_step(self) -> None:
        """Allow the next lookup: a training step begins."""
        self._looked_up = False

    def end_step(self) -> None:
        """Allow the next lookup and backward pass: an optimizer has stepped."""
        self._looked_up = self._updated = False

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        check_pipeline(self.path, module)
        self._exchange = self._bags = None
        features = args[0] if args else kwargs.get("features")
        if self.announce is not None and isinstance(features, KeyedJaggedTensor):
            self.announce(features)
        self.lookups += 1
        self._training = training = self.once and self.in_training_step and torch.is_grad_enabled()
        if training and self.prepare is not None:
            self.prepare()
        if training and not self.hold:
            if self._looked_up:
                raise RuntimeError(
                    f"{self.path}: looked up twice in one training step. Its tables {self._table_names()} would be "
                    "updated twice, each time with a part of the gradient. Look everything up at once (a "
                    "KeyedJaggedTensor with one feature for each use, or the distinct ids and positions into them), "
                    "let them be updated in the optimizer step: TorchRecStrategy(update_in_step=True), "
                    f"or replicate the collection: replicate=[{self.path!r}]"
                )
            if self._updated:
                raise RuntimeError(
                    f"{self.path}: no optimizer has stepped since the last backward pass, which has updated the "
                    f"tables {self._table_names()} already. To accumulate batches with manual optimization, let them "
                    "be updated in the optimizer step: TorchRecStrategy(update_in_step=True)"
                )
            self._looked_up = True
        if not isinstance(features, KeyedJaggedTensor):
            return None
        exchange = self._sent_before(features) if training else None
        if exchange is None:
            ids = self.check(features)
            if ids.even:
                exchange = self.send(module, ids)
            elif ids.fault:
                raise ValueError(ids.fault)
        self._exchange = exchange
        sent = features if exchange is not None else readable(features)
        if sent is features:
            return None
        self._bags = 0
        return ((sent, *args[1:]), kwargs) if args else (args, {**kwargs, "features": sent})

    def check(self, features: KeyedJaggedTensor, on_host: KeyedJaggedTensor | None = None) -> CheckedIds:
        """Look at the ids of a lookup.

        Args:
            features: The ids.
            on_host: The same before they were copied to the device; to look at them there costs no wait.
        """
        fault = self._find_bad_id(features if on_host is None else on_host) if self.check_ids else None
        return CheckedIds(features, self.path, fault, self.pad and not features.variable_stride_per_key())

    def send(self, module: nn.Module, ids: CheckedIds) -> Exchange:
        """Begin to exchange ids. Every rank must call this for the same lookups in the same order."""
        return Exchange(module, ids, self._habit)

    def under_way(self) -> Exchange | None:
        """Return what brings the ids of the lookup under way, if an exchange does."""
        return self._exchange

    def _sent_before(self, features: KeyedJaggedTensor) -> Exchange | None:
        if self.seen is not None:
            self.seen.append(features)
        exchange = self.sent.pop(0) if self.sent else None
        if exchange is not None and not exchange.is_of(features):
            raise RuntimeError(
                f"{self.path}: look-ahead has sent the ids that the batch held for it, and training_step looks up "
                "others. Look up the KeyedJaggedTensor of the batch as it is, or prepare it in the loader; "
                "TorchRecStrategy(look_ahead=False) exchanges ids when they are looked up"
            )
        return exchange

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        bags = self._bags if self._exchange is None else self._exchange.bags
        self._exchange = self._bags = None
        watch = self._training and self.watch_backward and not self.hold
        if bags is None and not watch and self.order is None:
            return WholeItems(output) if isinstance(output, LazyAwaitable) else None
        found = uncut(output.wait() if hasattr(output, "wait") else output)
        if watch:
            for values in tensors(found):
                if values.requires_grad:
                    values.register_hook(self._note_backward)
        if self.order is not None:
            found = in_order(found, self.order)
        return found if bags is None else first_bags(found, bags)

    def _note_backward(self, gradient: Tensor) -> None:
        self._updated = True

    def _find_bad_id(self, features: KeyedJaggedTensor) -> str | None:
        values, keys = features.values(), features.keys()
        if values.numel() == 0:
            return None
        ends = features.offset_per_key()
        checked: list[str] = []
        extremes: list[Tensor] = []
        for number, feature in enumerate(keys):
            ids = values[ends[number] : ends[number + 1]]
            if feature in self.limits and ids.numel():
                checked.append(feature)
                extremes += torch.aminmax(ids)
        if not checked:
            return None
        found = torch.stack(extremes).tolist()  # one wait for the device
        for number, feature in enumerate(checked):
            smallest, largest = found[2 * number], found[2 * number + 1]
            table = self.limits[feature]
            if smallest < 0 or largest >= table.config.num_embeddings:
                return (
                    f"table {table.name!r}, feature {feature!r}: ids must be in [0, {table.config.num_embeddings}), "
                    f"got {smallest if smallest < 0 else largest} on rank {dist.get_rank()}"
                )
        return None

    def _table_names(self) -> list[str]:
        return sorted({table.name for table in self.limits.values()})


class WholeItems(LazyAwaitable[Any]):
    """A lookup on its way whose ``[key]`` waits for it and is a tensor, or a sequence collection's JaggedTensor.

    TorchRec's own gives out another object on its way. Functions of torch wait for that, but a custom
    ``autograd.Function`` takes it for something without a gradient, and the tables behind it silently do not train.
    A sequence collection's result is :func:`uncut`.

    Args:
        lookup: What the sharded collection returned.
    """

    def __init__(self, lookup: LazyAwaitable[Any]) -> None:
        super().__init__()
        self._lookup = lookup

    def _wait_impl(self) -> Any:
        return uncut(self._lookup.wait())

    def __getitem__(self, key: str) -> Any:
        return LazyAwaitable._wait_async(self)[key]


def uncut(output: Any) -> Any:
    """Return a sequence collection's result; of a single feature, with the vectors as they came.

    TorchRec cuts them into the parts of features. The backward pass of a cut copies the gradient, even where the only
    part is the whole.
    """
    if isinstance(output, KeyedTensor) or len(output) != 1:
        return output
    ((key, jagged),) = output.items()
    part, whole = jagged.values(), jagged.values()._base
    if whole is None or whole.shape != part.shape or whole.data_ptr() != part.data_ptr():
        return output
    return {key: JaggedTensor(whole, jagged.weights_or_none(), lengths=jagged.lengths())}


def tensors(output: Any) -> list[Tensor]:
    """Return the vectors that a lookup gave: all of a bag collection in one, a sequence collection's by feature."""
    if isinstance(output, KeyedTensor):
        return [output.values()]
    return [jagged.values() for jagged in output.values()]


def first_bags(output: Any, bags: int) -> Any:
    """Return a lookup's result without the bags behind the first ``bags``, which were put there to fill up.

    A sequence collection is given one empty bag instead of none, so nothing but its length goes away there.
    """
    if not isinstance(output, KeyedTensor):
        return {
            key: JaggedTensor(jagged.values(), jagged.weights_or_none(), lengths=jagged.lengths()[:bags])
            for key, jagged in output.items()
        }
    if output.values().shape[0] == bags:
        return output
    return KeyedTensor(keys=output.keys(), length_per_key=output.length_per_key(), values=output.values()[:bags])


def in_order(pooled: KeyedTensor, names: Sequence[str]) -> KeyedTensor:
    """Return ``pooled`` with its keys, and so the columns of its values, in the order of ``names``.

    Example:
        >>> pooled = KeyedTensor(["b", "a"], [1, 2], torch.tensor([[1.0, 2.0, 3.0]]))
        >>> in_order(pooled, ["a", "b"]).values()
        tensor([[2., 3., 1.]])
    """
    width = dict(zip(pooled.keys(), pooled.length_per_key(), strict=True))
    values = torch.cat([pooled[name] for name in names], dim=1)
    return KeyedTensor(keys=list(names), length_per_key=[width[name] for name in names], values=values)
