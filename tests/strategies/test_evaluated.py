"""Ranks with different numbers of evaluation batches measure what one process measures: every example once."""

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchrec import KeyedJaggedTensor

from lightning_mvrec.metrics import AUC
from lightning_mvrec.strategies import Adagrad, RowWiseAdagrad, TorchRecStrategy
from tests.distributed.launch import RankError, run_ranks
from tests.strategies.stranger import ITEMS, USERS, InInit, loader, trainer
from tests.strategies.test_torchrec import Sequence


def batch(number):
    """Batch ``number`` of the whole data: 3 to 7 users, so that totals are odd."""
    draw = torch.Generator().manual_seed(number)
    users = 3 + number % 5
    lengths = torch.randint(0, 5, (users,), generator=draw)
    history = torch.randint(0, ITEMS, (int(lengths.sum()),), generator=draw)
    who = torch.randint(0, USERS, (users,), generator=draw)
    ids = KeyedJaggedTensor(
        ["history", "who"], torch.cat([history, who]), lengths=torch.cat([lengths, torch.ones_like(who)])
    )
    return {"ids": ids, "label": torch.randint(0, 2, (users,), generator=draw).float(), "number": number}


class Stream(IterableDataset):
    def __init__(self, made):
        self.made = made

    def __iter__(self):
        return iter(self.made)


def mine(counts, known=True, first=0):
    """This rank's batches out of ``sum(counts)``; one process has all."""
    rank = dist.get_rank()
    alone = dist.get_world_size() == 1
    start, end = (0, sum(counts)) if alone else (sum(counts[:rank]), sum(counts[: rank + 1]))
    made = [batch(number) for number in range(first + start, first + end)]
    return DataLoader(made if known else Stream(made), batch_size=None)


class Measured(InInit):
    """Logs a mean, a maximum and a metric, and counts what it sees."""

    logs_metric = True

    def __init__(self):
        super().__init__()
        self.auc = AUC()
        self.seen = []

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        logit, label = self(batch), batch["label"]
        loss = nn.functional.binary_cross_entropy_with_logits(logit, label)
        self.log("loss", loss, batch_size=len(label), sync_dist=True)
        self.log("double", loss.double(), batch_size=len(label), sync_dist=True)
        self.log("most", logit.max(), reduce_fx="max", sync_dist=True)
        self.auc.update(logit.sigmoid(), label)
        if self.logs_metric:
            self.log("auc", self.auc)
        self.seen.append(batch["number"])

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return batch["number"], self(batch)


class Sequences(Measured, Sequence):
    """Two collections, one of them of sequences."""


class Later(Measured):
    """Looks up once more when an epoch begins and ends."""

    def on_validation_epoch_start(self):
        self(batch(99))

    def on_validation_epoch_end(self):
        self.log("extra", self(batch(98)).sum(), sync_dist=True)


def measure(counts, kind=Measured, known=True, stage="validate", optimizer=None, **settings):
    pl.seed_everything(5, verbose=False)
    module = kind()
    strategy = TorchRecStrategy(optimizer or RowWiseAdagrad(lr=0.1), failure_timeout=20.0, **settings)
    found = getattr(trainer(strategy), stage)(module, mine(counts, known), **({} if stage == "predict" else QUIET))
    return found, module.seen


QUIET = {"verbose": False}


def check(counts, **settings):
    (alone,), (all_seen,) = zip(*run_ranks(lambda: measure(counts, **settings), 1), strict=True)
    together = run_ranks(lambda: measure(counts, **settings), 2)
    assert sorted(together[0][1] + together[1][1]) == all_seen
    for found, _ in together:
        assert found[0].keys() == alone[0].keys()
        assert found[0]["auc"] == alone[0]["auc"]
        for name, value in alone[0].items():
            assert found[0][name] == pytest.approx(value, abs=2e-6)


@pytest.mark.parametrize("counts", [(3, 5), (0, 4), (4, 0)])
@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_two_ranks_with_different_numbers_of_batches_equal_one(counts, sharding):
    check(counts, sharding=sharding)


def test_streams_of_different_lengths_are_measured_whole():
    check((1, 4), known=False, sharding="row_wise")


def test_several_collections_are_looked_up_with_no_ids_too():
    check((3, 1), kind=Sequences, sharding="row_wise")


def test_lookups_of_hooks_are_made_together():
    check((0, 2), kind=Later, stage="validate", sharding="row_wise")


def test_replicated_tables_are_measured_whole_too():
    check((0, 3), replicate="all")


def test_a_test_run_is_measured_whole():
    check((2, 3), stage="test", optimizer=Adagrad(lr=0.1), sharding="column_wise")


def test_predictions_of_different_numbers_of_batches_are_those_of_one():
    (alone, _), *_ = run_ranks(lambda: measure((1, 3), stage="predict"), 1)
    together = [found for found, _ in run_ranks(lambda: measure((1, 3), stage="predict", sharding="row_wise"), 2)]
    joined = {number: values for found in together for number, values in found}
    assert joined.keys() == dict(alone).keys()
    for number, values in alone:
        assert torch.allclose(joined[number], values, atol=1e-6)


def test_a_fit_validates_all_batches_in_every_epoch_and_its_training_is_not_touched():
    def run(counts):
        pl.seed_everything(5, verbose=False)
        module = Measured()
        history = []

        class Keep(pl.Callback):
            def on_validation_end(self, trainer, pl_module):
                history.append({name: float(value) for name, value in trainer.callback_metrics.items()})

        plan = TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", look_ahead=True, failure_timeout=20.0)
        runner = trainer(plan, max_epochs=2, callbacks=[Keep()], num_sanity_val_steps=1, val_check_interval=2)
        runner.fit(module, loader(4), mine(counts))
        loops = [runner.fit_loop.epoch_loop.val_loop, runner.validate_loop, runner.test_loop]
        left = [name for loop in loops for name in vars(loop) if name == "_store_dataloader_outputs"]
        return history, module.losses, left

    uneven, even = run_ranks(lambda: run((0, 4)), 2), run_ranks(lambda: run((2, 2)), 2)
    for rank in range(2):
        assert uneven[rank][1] == even[rank][1]
        assert uneven[rank][2] == []
        assert len(uneven[rank][0]) == 5
        for found, expected in zip(uneven[rank][0][1:], even[rank][0][1:], strict=True):
            assert found["auc"] == expected["auc"]
            assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)


def test_limits_count_alike_on_all_ranks():
    def run():
        module = Measured()
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise"), limit_val_batches=2)
        runner.validate(module, mine((1, 5)), verbose=False)
        return module.seen

    assert run_ranks(run, 2) == [[0], [1, 2]]


class Several(Measured):
    """Lightning wants a metric for each loader."""

    logs_metric = False


def test_several_loaders_are_each_measured_whole():
    def run():
        pl.seed_everything(5, verbose=False)
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", failure_timeout=20.0))
        return runner.validate(Several(), [mine((3, 1)), mine((1, 2), first=4), mine((1, 1), first=7)], verbose=False)

    (alone,), together = run_ranks(run, 1), run_ranks(run, 2)
    for found in together:
        for part, expected in zip(found, alone, strict=True):
            assert part == pytest.approx(expected, abs=2e-6)


def test_a_loader_that_is_empty_on_a_rank_beside_others_is_refused():
    def run():
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", failure_timeout=20.0))
        with pytest.raises(ValueError, match="every rank must have a batch of each"):
            runner.validate(Measured(), [mine((1, 1)), mine((0, 2))], verbose=False)
        return True

    assert run_ranks(run, 2) == [True, True]


class Meets(Measured):
    """Its ranks meet in a step other than by a lookup."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        dist.all_reduce(torch.ones(1))


@pytest.mark.slow
def test_a_step_that_meets_the_other_ranks_otherwise_is_named():
    def run():
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", failure_timeout=6.0))
        runner.validate(Meets(), mine((2, 4)), verbose=False)

    with pytest.raises(
        RankError, match="rank 0 has no more batches of this evaluation, and rank 1 waits in validation"
    ):
        run_ranks(run, 2)


class Rows(Dataset):
    def __len__(self):
        return 7

    def __getitem__(self, index):
        return index


def collate(rows):
    joined = batch(0)
    values = torch.tensor(rows)
    ids = KeyedJaggedTensor(["history", "who"], torch.cat([values, values]), lengths=torch.ones(2 * len(rows)).long())
    return {**joined, "ids": ids, "label": (values % 2).float(), "number": rows}


@pytest.mark.parametrize("batch_size", [2, 3])
def test_lightnings_sampler_repeats_no_example_in_an_evaluation(batch_size):
    def run():
        module = Measured()
        data = DataLoader(Rows(), batch_size=batch_size, collate_fn=collate)
        runner = trainer(
            TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", failure_timeout=20.0),
            use_distributed_sampler=True,
        )
        runner.validate(module, data, verbose=False)
        return [row for rows in module.seen for row in rows]

    first, second = run_ranks(run, 2)
    assert sorted(first + second) == list(range(7))


def test_even_evaluations_make_no_exchange_more():
    def run():
        seen = []

        class Looks(InInit):
            def validation_step(self, batch, batch_idx):
                strategy = self.trainer.strategy
                seen.extend([strategy._company, *(guard.announce for guard in strategy._tables.guards.values())])

        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise"))
        runner.validate(Looks(), loader(1), verbose=False)
        return seen

    assert run_ranks(run, 2) == [[None, None]] * 2
