"""Settings of the module's own optimizer that do not reach the tables, said once."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer


def warn_of_settings(optimizer: Optimizer, tables: Mapping[str, Tensor]) -> None:
    """Warn where ``configure_optimizers`` gives tables a weight decay, or a group of their own with its own rate.

    Tables are trained by their table optimizers, so neither has an effect on them.

    Args:
        optimizer: What ``configure_optimizers`` returned, with the tables still in it.
        tables: Name -> weight of the tables that have a table optimizer and are trained.
    """
    name_of = {id(weight): name for name, weight in tables.items()}
    kind = type(optimizer).__name__
    for group in optimizer.param_groups:
        found = sorted({name_of[id(weight)] for weight in group["params"] if id(weight) in name_of})
        if not found:
            continue
        if group.get("weight_decay", 0):
            rank_zero_warn(
                f"{kind}(weight_decay={group['weight_decay']}) does not reach the tables {found}, which their table "
                "optimizers train: RowWiseAdagrad(weight_decay=...) and Adam(weight_decay=...) decay the rows of a "
                "batch, the others none. To say that tables are not meant, give "
                "configure_optimizers' optimizer the dense parameters only"
            )
        if len(found) == len(group["params"]) and len(optimizer.param_groups) > 1:
            rank_zero_warn(
                f"the group of {kind} that holds only the tables {found} gives them its schedule, but not its settings "
                f"(lr={group.get('lr')}): their table optimizers train them, with TorchRecStrategy(table_optimizer="
                "{...}) or configure_table_optimizers() by table name"
            )
