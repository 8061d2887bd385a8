"""How tables are trained is what was asked for, whatever the plan and the number of ranks: against unsharded tables."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torchrec.optim import RowWiseAdagrad as TheirRowWiseAdagrad

from lightning_mvrec.strategies import SGD, Adagrad, Adam, RowWiseAdagrad, TorchRecStrategy
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import InInit, Together, loader, trainer
from tests.strategies.test_clipping import Everything, assert_alike, weights_after
from tests.strategies.test_guards import refusal
from tests.strategies.test_held import Sequence


class Decaying(torch.optim.Optimizer):
    """Row-wise Adagrad that shrinks the rows of a batch, row by row."""

    def __init__(self, params, lr, decay):
        super().__init__(params, {"lr": lr})
        self.decay = decay

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    sums = self.state[weight].setdefault("sum", [0.0] * len(weight))
                    for row, gradient in enumerate(weight.grad):
                        if gradient.any():
                            sums[row] += gradient.square().mean().item()
                            step = gradient / (sums[row] ** 0.5 + 1e-8)
                            weight[row] -= group["lr"] * (step + self.decay * weight[row])


REFERENCES = {
    "SGD": (SGD(lr=0.5), lambda weights: torch.optim.SGD(weights, lr=0.5)),
    "Adagrad": (Adagrad(lr=0.1), lambda weights: torch.optim.Adagrad(weights, lr=0.1, eps=1e-8)),
    "RowWiseAdagrad": (RowWiseAdagrad(lr=0.1), lambda weights: TheirRowWiseAdagrad(weights, lr=0.1, eps=1e-8)),
    "decay": (RowWiseAdagrad(lr=0.1, weight_decay=0.3), lambda weights: Decaying(weights, 0.1, 0.3)),
}


def with_two_dense_groups(base, make_tables=None):
    """``base`` with two dense groups of different rates; where nothing is sharded its tables are trained by torch."""

    class Grouped(base):
        def configure_optimizers(self):
            dense = list(self.tower.parameters())
            optimizer = torch.optim.SGD([{"params": dense[:1], "lr": 0.2}, {"params": dense[1:]}], lr=0.05)
            if isinstance(self.trainer.strategy, TorchRecStrategy):
                return optimizer
            mine = {id(weight) for weight in dense}
            tables = [weight for weight in self.parameters() if id(weight) not in mine and weight.requires_grad]
            return Together(optimizer, make_tables(tables)) if tables else optimizer

    return Grouped


@pytest.mark.parametrize(
    ("base", "name"),
    [(Everything, "SGD"), (Everything, "Adagrad"), (Everything, "RowWiseAdagrad"), (Sequence, "decay")],
)
def test_a_table_optimizer_does_the_same_under_every_plan_and_on_one_and_two_ranks(base, name):
    ours, theirs = REFERENCES[name]
    kind = with_two_dense_groups(base, theirs)
    expected = run_ranks(lambda: weights_after(kind, "auto"), 1)[0]
    small = ["small"] if base is Everything else []
    plans = [(1, {"sharding": "table_wise", "replicate": small}), (2, {"sharding": "row_wise", "replicate": small})]
    plans.append((2, {"replicate": "all"}))
    for size, plan in plans:
        found = run_ranks(lambda plan=plan: weights_after(kind, TorchRecStrategy(ours, **plan)), size)[0]
        assert_alike(found, expected, 2e-6)


def test_adam_does_the_same_on_one_and_two_ranks_where_it_is_replicated():
    def run():
        return weights_after(with_two_dense_groups(Everything), TorchRecStrategy(Adam(lr=0.01), replicate="all"))

    assert_alike(run_ranks(run, 2)[0], run_ranks(run, 1)[0], 2e-6)


def test_weight_decay_is_refused_where_the_kernel_has_none():
    message = refusal(TorchRecStrategy(RowWiseAdagrad(lr=0.1, weight_decay=0.1)))
    assert "table 'item' is sharded, and TorchRec's fused RowWiseAdagrad ignores weight_decay on cpu" in message
    assert "replicate=['embeddings']" in message
    assert refusal(TorchRecStrategy(RowWiseAdagrad(lr=0.1, weight_decay=0.1), replicate="all")) is None


@pytest.mark.parametrize("frozen", [["mean"], ["item", "mean"], ["event"], ["user"]])
def test_frozen_tables_stay_and_the_others_train_as_before(frozen):
    class Frozen(Everything):
        def build(self):
            super().build()
            for name, weight in self.named_parameters():
                if any(f".{table}." in name for table in frozen):
                    weight.requires_grad_(False)

    kind = with_two_dense_groups(Frozen, lambda weights: torch.optim.SGD(weights, lr=0.5))
    expected = run_ranks(lambda: weights_after(kind, "auto"), 1)[0]

    def run():
        pl.seed_everything(3, verbose=False)
        before = kind().state_dict()
        return before, weights_after(kind, TorchRecStrategy(SGD(lr=0.5), sharding="row_wise", replicate=["small"]))

    before, found = run_ranks(run, 2)[0]
    assert_alike(found, expected, 2e-6)
    for key, value in found.items():
        assert torch.equal(value, before[key]) == any(f".{table}." in key for table in frozen), key


class Switching(pl.Callback):
    def __init__(self, on):
        self.on = on

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            module.embeddings.requires_grad_(self.on)


@pytest.mark.parametrize(
    ("start", "message"),
    [(False, "table 'item' was frozen when it was sharded"), (True, "Freeze it before Trainer.fit")],
)
def test_freezing_and_thawing_in_a_run_is_refused(start, message):
    class Module(InInit):
        def build(self):
            super().build()
            self.embeddings.requires_grad_(start)

    assert message in refusal(module=Module, callbacks=[Switching(not start)], max_epochs=2)


def warnings_of(make, strategy=None):
    class Module(InInit):
        def configure_optimizers(self):
            return make(self)

    def run():
        runner = trainer(strategy or TorchRecStrategy(SGD(lr=0.1)))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            runner.fit(Module(), loader(1))
        return [str(warning.message) for warning in said]

    return run_ranks(run, 1)[0]


def test_settings_of_the_dense_optimizer_that_do_not_reach_tables_are_said():
    said = warnings_of(lambda module: torch.optim.AdamW(module.parameters(), lr=0.1))
    assert any("AdamW(weight_decay=0.01) does not reach the tables ['item', 'user']" in line for line in said)

    def apart(module):
        return torch.optim.SGD(
            [{"params": module.tower.parameters()}, {"params": module.embeddings.parameters(), "lr": 7}], 0.1
        )

    said = warnings_of(apart)
    assert any("holds only the tables ['item', 'user']" in line and "(lr=7)" in line for line in said)
    dense = warnings_of(lambda module: torch.optim.AdamW(module.tower.parameters(), lr=0.1))
    assert not any("the tables" in line for line in dense)


@pytest.mark.parametrize("sharding", ["row_wise", None])
def test_tables_and_dense_parameters_have_schedules_apart(sharding):
    """The tables' group stands still from the second step on, the dense one goes on."""

    class Apart(Sequence):
        def configure_optimizers(self):
            groups = [{"params": self.tower.parameters()}, {"params": self.embeddings.parameters()}]
            optimizer = torch.optim.SGD(groups, lr=0.1)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda _: 1.0, lambda step: float(step == 0)])
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def run(steps):
        plan = {"sharding": sharding} if sharding else {"replicate": "all"}
        return weights_after(Apart, TorchRecStrategy(SGD(lr=0.5), **plan), lambda _: loader(steps))

    one, four = (run_ranks(run, 2, steps)[0] for steps in (1, 4))
    for key in one:
        assert torch.equal(one[key], four[key]) == ("embeddings" in key), key


def test_one_cycle_with_momentum_drives_dense_and_tables():
    class Cycle(Everything):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    class Watch(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, runner, *_):
            dense, tables = runner.optimizers[0].param_groups
            self.seen.append((dense["lr"], dense["momentum"], tables["lr"]))

    def run(**plan):
        watch = Watch()
        weights = weights_after(Cycle, TorchRecStrategy(SGD(lr=0.5), **plan), callbacks=[watch])
        for dense, _, tables in watch.seen:
            assert tables == pytest.approx(0.5 * dense / 0.1)  # the peak is the tables' own rate
        assert {round(momentum, 2) for _, momentum, _ in watch.seen} >= {0.85, 0.95}
        return weights

    assert_alike(run_ranks(lambda: run(sharding="row_wise"), 2)[0], run_ranks(lambda: run(replicate="all"), 1)[0])


def test_the_monitor_names_tables_and_logs_the_rate_at_work(tmp_path):
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    class Halved(InInit):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def run():
        monitor = LearningRateMonitor(logging_interval="step", log_momentum=True, log_weight_decay=True)
        logger = CSVLogger(tmp_path, name="", version="")
        strategy = TorchRecStrategy({"item": SGD(lr=0.2), "user": Adagrad(lr=0.4)})
        trainer(strategy, logger=logger, callbacks=[monitor], log_every_n_steps=1).fit(Halved(), loader(3))
        return {name: values for name, values in monitor.lrs.items() if "tables" in name}

    found = run_ranks(run, 1)[0]
    assert found == {
        "lr-JoinedOptimizer/tables/item": pytest.approx([0.2, 0.1, 0.05]),
        "lr-JoinedOptimizer/tables/user": pytest.approx([0.4, 0.2, 0.1]),
    }


def test_by_hand_optimizers_in_the_backward_pass_see_the_rate_of_their_step():
    """A kernel takes its rate when it is asked for rows, which comes before everything else by hand."""

    class ByHand(Sequence):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = nn.functional.binary_cross_entropy_with_logits(self(batch), batch["label"])
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.lr_schedulers().step()

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)]

    def run(**plan):
        return weights_after(ByHand, TorchRecStrategy(SGD(lr=0.5), **plan))

    assert_alike(run_ranks(lambda: run(sharding="row_wise"), 2)[0], run_ranks(lambda: run(replicate="all"), 1)[0])
