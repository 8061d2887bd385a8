"""What a step does to sharded tables, against a loop over unsharded ones with every formula written out.

Accumulation, clipping, schedules, groups of parameters, frozen tables and weight decay, on one and two ranks.
"""

from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_mvrec.strategies import SGD, Adagrad, RowWiseAdagrad, TorchRecStrategy, plain_module
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import batches, trainer
from tests.strategies.test_clipping import Everything
from tests.strategies.test_held import Sequence, in_parts

DENSE_RATES = (0.2, 0.05)  # of the first dense parameter, and of the others
STEPS = 4


@dataclass
class Case:
    """How a run is made by the Trainer, and what a loop by hand has to do."""

    optimizer: Any
    kind: type = Everything
    parts: int = 1
    clip: tuple[str, float] | None = None
    frozen: tuple[str, ...] = ()
    #: Factor of the learning rates in each step: of the dense parameters, of the tables.
    dense_factor: tuple[float, ...] = (1.0,) * STEPS
    table_factor: tuple[float, ...] = (1.0,) * STEPS
    settings: dict[str, Any] = field(default_factory=dict)

    def module(self):
        case = self

        class Scheduled(case.kind):
            def build(self):
                super().build()
                for name, weight in self.named_parameters():
                    if any(f".{table}." in name for table in case.frozen):
                        weight.requires_grad_(False)

            def configure_optimizers(self):
                first, *others = self.tower.parameters()
                tables = [weight for name, weight in self.named_parameters() if not name.startswith("tower.")]
                groups = [{"params": [first], "lr": DENSE_RATES[0]}, {"params": others}, {"params": tables}]
                optimizer = torch.optim.SGD(groups, lr=DENSE_RATES[1])
                dense, own = case.dense_factor.__getitem__, case.table_factor.__getitem__
                schedule = torch.optim.lr_scheduler.LambdaLR(
                    optimizer, [lambda step, of=of: of(min(step, STEPS - 1)) for of in (dense, dense, own)]
                )
                return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        pl.seed_everything(3, verbose=False)
        return Scheduled()


def by_trainer(case, **plan):
    module = case.module()
    data = [part for batch in batches(STEPS) for part in in_parts(batch, case.parts)]
    settings = {"accumulate_grad_batches": case.parts, **case.settings}
    if case.clip is not None:
        settings |= {"gradient_clip_algorithm": case.clip[0], "gradient_clip_val": case.clip[1]}
    runner = trainer(TorchRecStrategy(case.optimizer, **plan), **settings)
    runner.fit(module, DataLoader(data, batch_size=None))
    return plain_module(runner).state_dict()


def by_hand(case):
    module = case.module()
    weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for step, batch in enumerate(batches(STEPS)):
        parts = in_parts(batch, case.parts)
        total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for part in parts:
            loss = nn.functional.binary_cross_entropy_with_logits(module(part), part["label"]) / len(parts)
            for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                total[name] += gradient
        if case.clip is not None and case.clip[0] == "norm":
            norm = sum(gradient.double().square().sum() for gradient in total.values()) ** 0.5
            assert norm > case.clip[1]  # it is at work
            total = {name: gradient * float(case.clip[1] / norm) for name, gradient in total.items()}
        if case.clip is not None and case.clip[0] == "value":
            assert max(float(gradient.abs().max()) for gradient in total.values()) > case.clip[1]
            total = {name: gradient.clamp(-case.clip[1], case.clip[1]) for name, gradient in total.items()}
        with torch.no_grad():
            for name, weight in weights.items():
                if name.startswith("tower."):
                    rate = DENSE_RATES[name not in ("tower.0.weight", "tower.weight")] * case.dense_factor[step]
                    weight -= rate * total[name]
                else:
                    train_table(case.optimizer, weight, total[name], sums[name], case.table_factor[step])
    return module.state_dict()


def train_table(optimizer, weight, gradient, sums, factor):
    """One row after the other; a row without gradient stays."""
    for row in gradient.any(dim=1).nonzero().flatten().tolist():
        change = gradient[row]
        if isinstance(optimizer, Adagrad):
            sums[row] += change**2
            change = change / (sums[row] ** 0.5 + optimizer.eps)
        elif isinstance(optimizer, RowWiseAdagrad):
            sums[row, 0] += (change**2).mean()
            change = change / (sums[row, 0] ** 0.5 + optimizer.eps) + optimizer.weight_decay * weight[row]
        weight[row] -= optimizer.lr * factor * change


TOGETHER = (1.0, 0.5, 0.0, 2.0)
CASES = {
    "sgd": Case(SGD(lr=0.5)),
    "adagrad": Case(Adagrad(lr=0.1)),
    "row-wise adagrad": Case(RowWiseAdagrad(lr=0.1, eps=1e-3)),
    "sequences": Case(RowWiseAdagrad(lr=0.1), kind=Sequence),
    "accumulated, adagrad": Case(Adagrad(lr=0.1), parts=2),
    "accumulated, row-wise adagrad": Case(RowWiseAdagrad(lr=0.1), parts=4),
    "accumulated sequences": Case(Adagrad(lr=0.1), kind=Sequence, parts=2),
    "norm": Case(SGD(lr=0.5), clip=("norm", 0.05)),
    "value": Case(Adagrad(lr=0.1), clip=("value", 0.004)),
    "norm of sequences": Case(RowWiseAdagrad(lr=0.1), kind=Sequence, clip=("norm", 0.05)),
    "norm, accumulated, with a schedule": Case(
        Adagrad(lr=0.1), parts=2, clip=("norm", 0.02), dense_factor=TOGETHER, table_factor=TOGETHER
    ),
    "one schedule": Case(Adagrad(lr=0.1), dense_factor=TOGETHER, table_factor=TOGETHER),
    "schedules apart": Case(RowWiseAdagrad(lr=0.1), dense_factor=TOGETHER, table_factor=(0.0, 1.0, 2.0, 0.5)),
    "schedules apart, accumulated": Case(
        SGD(lr=0.5), parts=2, dense_factor=TOGETHER, table_factor=(0.0, 1.0, 2.0, 0.5)
    ),
    "frozen": Case(Adagrad(lr=0.1), frozen=("mean", "event")),
    "frozen, clipped": Case(SGD(lr=0.5), frozen=("item", "user"), clip=("norm", 0.05)),
    "weight decay": Case(RowWiseAdagrad(lr=0.1, weight_decay=0.3), kind=Sequence),
    "weight decay, limited": Case(
        RowWiseAdagrad(lr=0.1, weight_decay=0.3), kind=Sequence, parts=2, clip=("value", 0.004)
    ),
    "weight decay, accumulated and clipped": Case(
        RowWiseAdagrad(lr=0.1, weight_decay=0.3), kind=Sequence, parts=2, clip=("norm", 0.05), dense_factor=TOGETHER
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_plan_on_one_and_two_ranks_trains_as_the_loop_by_hand(name):
    case = CASES[name]
    small = ["small"] if case.kind is Everything else []
    plans = [{"sharding": kind, "replicate": small} for kind in ("table_wise", "row_wise")]
    if not isinstance(case.optimizer, RowWiseAdagrad):
        plans.append({"sharding": "column_wise", "replicate": small})
    plans.append({"replicate": "all"})
    expected, alone = run_ranks(lambda: (by_hand(case), by_trainer(case, **plans[0])), 1)[0]
    together = run_ranks(lambda: [by_trainer(case, **plan) for plan in plans[1:]], 2)[0]
    for plan, found in zip(plans, [alone, *together], strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            far = (found[key] - value).abs().max().item()
            assert far < 3e-6, (plan, key, far)
