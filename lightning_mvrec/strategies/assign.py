"""Which tables are sharded, which are replicated, and which optimizer trains each: never the planner's decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.optim.apply_optimizer_in_backward import param_to_optim_hook_handle_map

from lightning_mvrec.strategies.optimizers import SGD, Adagrad, Adam, RowWiseAdagrad, TableOptimizer
from lightning_mvrec.strategies.tables import COLLECTIONS, Table, configs, weights

HOW_TO_CHOOSE = """Give one in one of these ways:
    Trainer(strategy=TorchRecStrategy(table_optimizer=RowWiseAdagrad(lr=0.05)))   # or a dict: table name -> optimizer
    def configure_table_optimizers(self):                                         # in the LightningModule
        return RowWiseAdagrad(lr=0.05)                                            # or a dict: table name -> optimizer
with `from lightning_mvrec.strategies import RowWiseAdagrad, TorchRecStrategy`."""

#: Arguments of torch's optimizers that a fused kernel does not know, by their harmless value.
_IGNORED_BY_KERNELS = {
    "momentum": 0,
    "dampening": 0,
    "nesterov": False,
    "weight_decay": 0,
    "lr_decay": 0,
    "initial_accumulator_value": 0,
    "amsgrad": False,
    "maximize": False,
}


def assign_tables(
    module: nn.Module,
    collections: Mapping[str, nn.Module],
    table_optimizer: TableOptimizer | Mapping[str, TableOptimizer] | None,
    replicate: str | Sequence[str],
    replicate_below: int,
    device_type: str,
) -> list[Table]:
    """Decide for every table of ``collections`` (path -> collection) and return them in the module's order.

    Raises:
        ValueError: If a table has no optimizer, or one that has no fused kernel on this device and is sharded; if the
            width of a sharded one is not a multiple of 4; if a name is unknown; if ``replicate`` names only some
            tables of a collection.
    """
    replicated = replicated_paths(collections, replicate, replicate_below)
    for path, collection in collections.items():
        if path not in replicated and type(collection) not in COLLECTIONS:
            raise ValueError(
                f"{path}: {type(collection).__name__} is a subclass that sharding would throw away; hold a plain "
                f"{type(collection).__mro__[1].__name__} in a module of your own, or add {path!r} to `replicate`"
            )
        if path not in replicated:
            _refuse_inside(module, path)
    from_module = getattr(module, "configure_table_optimizers", lambda: None)()
    names = [config.name for collection in collections.values() for config in configs(collection)]
    sources = [
        (
            "TorchRecStrategy(table_optimizer=...)",
            _by_name(table_optimizer, names, "TorchRecStrategy(table_optimizer)"),
        ),
        ("configure_table_optimizers", _by_name(from_module, names, "configure_table_optimizers()")),
    ]
    tables = []
    for path, collection in collections.items():
        for config in configs(collection):
            weight = weights(collection)[config.name].weight
            choices = [found[config.name] for _, found in sources if config.name in found]
            in_backward = _take_in_backward(config.name, weight)
            optimizer = [*choices, in_backward][0]
            frozen = not weight.requires_grad
            if frozen and path not in replicated:
                optimizer = SGD(lr=0.0)  # a fused kernel trains whatever is looked up
            tables.append(Table(path, config, path in replicated, optimizer, frozen))
    _refuse_incomplete(tables, device_type)
    return tables


def replicated_paths(
    collections: Mapping[str, nn.Module], replicate: str | Sequence[str], replicate_below: int
) -> set[str]:
    """Return the paths of the collections that stay whole on every rank.

    Raises:
        ValueError: If a name is neither a table nor a collection, or only some tables of a collection are named.
    """
    wanted = {replicate} if isinstance(replicate, str) else set(replicate)
    tables = {path: [config.name for config in configs(collection)] for path, collection in collections.items()}
    known = {"all", *tables, *(name for names in tables.values() for name in names)}
    if unknown := sorted(wanted - known):
        raise ValueError(
            f"replicate must name tables or collections of the module, or be 'all': {unknown} are not among "
            f"{sorted(known - {'all'})}"
        )
    found = set()
    for path, collection in collections.items():
        named = wanted & set(tables[path])
        small = all(config.num_embeddings < replicate_below for config in configs(collection))
        if "all" in wanted or path in wanted or small or named == set(tables[path]):
            found.add(path)
        elif named:
            rest = sorted(set(tables[path]) - named)
            raise ValueError(
                f"replicate: a collection is replicated whole or sharded whole; {path!r} also holds {rest}. "
                f"Name them too (or {path!r}), or put them in a collection of their own"
            )
    return found


def _refuse_inside(module: nn.Module, path: str) -> None:
    parents = path.split(".")[:-1]
    for depth in range(len(parents)):
        parent = module.get_submodule(".".join(parents[: depth + 1]))
        if type(parent).__module__.startswith("torchrec.modules.mc_"):
            raise ValueError(
                f"{path} is inside a {type(parent).__name__}, which gives out rows of its own on every rank: sharded, "
                "one id would mean different rows. Use plain collections and map ids beforehand"
            )


def _by_name(value: Any, names: Sequence[str], source: str) -> dict[str, TableOptimizer]:
    if value is None:
        return {}
    if isinstance(value, TableOptimizer):
        return dict.fromkeys(names, value)
    if not isinstance(value, Mapping):
        raise ValueError(f"{source} must be a table optimizer or a dict of table name to one, got {value!r}")
    if unknown := sorted(set(value) - set(names)):
        raise ValueError(f"{source}: unknown table {unknown}, the module has {sorted(names)}")
    for name, optimizer in value.items():
        if not isinstance(optimizer, TableOptimizer):
            raise ValueError(
                f"{source}[{name!r}] must be SGD, Adagrad, RowWiseAdagrad or Adam of lightning_mvrec.strategies, "
                f"got {optimizer!r}"
            )
    return dict(value)


def _take_in_backward(table: str, weight: nn.Parameter) -> TableOptimizer | None:
    """Read what ``apply_optimizer_in_backward`` said, and take its hook away: it would step before DDP averages."""
    classes = getattr(weight, "_optimizer_classes", None)
    if not classes:
        return None
    for handle in param_to_optim_hook_handle_map.pop(weight, []):
        handle.remove()
    return from_torch(classes[0], weight._optimizer_kwargs[0], table)  # type: ignore[attr-defined]


def from_torch(optimizer: type[torch.optim.Optimizer], kwargs: Mapping[str, Any], table: str = "") -> TableOptimizer:
    """Return the table optimizer that does what a torch or torchrec optimizer class does.

    Raises:
        ValueError: If there is none, or an argument is one that the fused kernel would silently ignore.

    Example:
        >>> from_torch(torch.optim.Adagrad, {"lr": 0.1, "eps": 1e-6})
        Adagrad(lr=0.1, eps=1e-06)
    """
    where = f"table {table!r}: " if table else ""
    kinds: dict[str, type[TableOptimizer]] = {
        "SGD": SGD,
        "Adagrad": Adagrad,
        "RowWiseAdagrad": RowWiseAdagrad,
        "RowwiseAdagrad": RowWiseAdagrad,
        "Adam": Adam,
    }
    if optimizer.__name__ not in kinds or not optimizer.__module__.startswith(("torch.optim", "torchrec.optim")):
        raise ValueError(
            f"{where}no fused kernel for {optimizer.__name__}; use one of SGD, Adagrad, RowWiseAdagrad, Adam"
        )
    kind = kinds[optimizer.__name__]
    known = set(kind.__dataclass_fields__)
    given = {"lr": 1e-3 if kind is Adam else 1e-2, **kwargs}
    if "weight_decay" in known and given.get("weight_decay", 0) != 0:
        raise ValueError(
            f"{where}torch's {kind.__name__} adds weight_decay to the gradient, the fused kernel takes it from the "
            f"weight: say which you mean by lightning_mvrec.strategies.{kind.__name__}(lr, weight_decay=...)"
        )
    if kind is Adam:
        given["betas"] = tuple(given.get("betas", (0.9, 0.999)))
    elif "eps" not in given and "eps" in known:
        given["eps"] = 1e-10
    for name, harmless in _IGNORED_BY_KERNELS.items():
        if name not in known and given.pop(name, harmless) != harmless:
            raise ValueError(f"{where}the fused {kind.__name__} ignores {name}; leave it out")
    return kind(**{name: value for name, value in given.items() if name in known})


def _refuse_incomplete(tables: Sequence[Table], device_type: str) -> None:
    left = [table for table in tables if table.optimizer is None and not table.frozen]
    everything_is_dense = all(table.replicated and table.optimizer is None for table in tables)
    if left and not everything_is_dense:
        raise ValueError(f"no table optimizer for {[table.name for table in left]}. {HOW_TO_CHOOSE}")
    for table in tables:
        if table.replicated:
            continue
        if (dim := table.config.embedding_dim) % 4:
            raise ValueError(
                f"table {table.name!r} is sharded, and its embedding_dim must then be a multiple of 4, got {dim}: "
                f"choose another width, or replicate the table with replicate=[{table.path!r}]"
            )
        if table.optimizer is None:
            continue
        if lack := table.optimizer.lacks(device_type, pooled=hasattr(table.config, "pooling")):
            raise ValueError(
                f"table {table.name!r} is sharded, and {lack}: "
                f"use RowWiseAdagrad(lr=...), or replicate the table with replicate=[{table.path!r}]"
            )
