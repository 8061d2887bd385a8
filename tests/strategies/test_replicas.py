"""Four ranks in replica groups train, save, evaluate and end as four in one group, and as one process."""

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.utils.data import DataLoader

from lightning_mvrec.strategies import Adagrad, RowWiseAdagrad, TorchRecStrategy, plain_module
from lightning_mvrec.strategies.checkpoint_read import SafeReader
from lightning_mvrec.strategies.checkpoint_stage import stage
from lightning_mvrec.strategies.lookups import LookupGuard
from tests.distributed.launch import RankError, run_ranks
from tests.distributed.test_reshard import AFTER, BEFORE, go, look
from tests.strategies.stranger import InInit, batches, loader, trainer
from tests.strategies.test_by_hand import CASES, Everything, by_hand, by_trainer
from tests.strategies.test_empty import BATCHES, TAKEN, Bags, Sequences, reference, train
from tests.strategies.test_evaluated import QUIET, Measured, mine
from tests.strategies.test_guards import bad_batch

#: Case of a loop by hand, how tables are sharded, and the number of groups of four ranks.
TRAINED = [
    ("adagrad", "row_wise", 1),
    ("adagrad", "row_wise", 2),
    ("sgd", "table_wise", 2),
    ("row-wise adagrad", "row_wise", 2),
    ("row-wise adagrad", "row_wise", 4),
    ("sequences", "table_wise", 2),
    ("accumulated sequences", "row_wise", 2),
    ("norm, accumulated, with a schedule", "row_wise", 2),
    ("value", "table_wise", 4),
    ("weight decay, limited", "row_wise", 2),
    ("frozen, clipped", "column_wise", 2),
]


def test_replica_groups_train_as_the_loop_by_hand_and_stay_equal():
    def run():
        found = []
        for name, sharding, groups in TRAINED:
            small = ["small"] if issubclass(CASES[name].kind, Everything) else []
            plan = {"sharding": sharding, "replicate": small, "replica_groups": groups}
            found.append({key: value.clone() for key, value in by_trainer(CASES[name], **plan).items()})
        return found

    expected = run_ranks(lambda: {name: by_hand(CASES[name]) for name, _, _ in TRAINED}, 1)[0]
    ranks = run_ranks(run, 4, timeout=120)  # each has put its own group's shards together
    for number, (name, sharding, groups) in enumerate(TRAINED):
        for key, value in expected[name].items():
            far = (ranks[0][number][key] - value).abs().max().item()
            assert far < 1e-6, (name, sharding, groups, key, far)
            assert all(torch.equal(rank[number][key], ranks[0][number][key]) for rank in ranks[1:]), (name, key)


def test_groups_with_different_numbers_of_bags_and_ranks_without_any_train_as_unsharded_tables(monkeypatch):
    taken = [[2, 2, 0, 0], [0, 4, 0, 0], [2, 0, 1, 1], [0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 3], [0, 0, 0, 4]]
    monkeypatch.setitem(TAKEN, 4, taken)
    assert [sum(users) for users in taken] == [len(users) for users in BATCHES]

    def run():
        return [
            train(kind, sharding=sharding, replica_groups=2, look_ahead=look_ahead)
            for kind, sharding, look_ahead in ((Bags, "row_wise", True), (Sequences, "row_wise", False))
        ]

    found = run_ranks(run, 4)[0]
    for weights, kind in zip(found, (Bags, Sequences), strict=True):
        for key, value in reference(kind).items():
            assert torch.allclose(weights[key], value, rtol=0, atol=1e-6), (kind, key)


def test_a_checkpoint_of_replica_groups_is_read_by_one_group_and_by_one_process(tmp_path):
    adagrad, path = Adagrad(lr=0.1), tmp_path / "a" / f"step={BEFORE}.ckpt"

    def on_four():
        whole = go(tmp_path / "a", "row_wise", adagrad, BEFORE + AFTER, replica_groups=2, async_save=True)[0]
        together = look(path, "row_wise", adagrad)
        return whole, together, go(tmp_path / "b", "row_wise", adagrad, BEFORE + AFTER, path)[0]

    def on_one():
        return look(path, "table_wise", adagrad), go(tmp_path / "c", "table_wise", adagrad, BEFORE + AFTER, path)[0]

    def in_groups():
        before = go(tmp_path / "d", "row_wise", adagrad, BEFORE, replica_groups=2)[1]
        again = go(tmp_path / "e", "row_wise", adagrad, BEFORE + AFTER, path, replica_groups=4)[0]
        return before, again

    whole, (weights, state), on = run_ranks(on_four, 4)[0]
    (alone, alone_state), alone_on = run_ranks(on_one, 1)[0]
    before, again = run_ranks(in_groups, 4)[0]
    assert all(torch.equal(before[key], value) for key, value in weights.items())
    assert all(torch.equal(alone[key], value) for key, value in weights.items())
    assert all(torch.equal(alone_state[key], value) for key, value in state.items())
    assert state["item/sum"].max() > 0
    for losses in (on, alone_on, again):
        assert losses == pytest.approx(whole[BEFORE:], abs=1e-6)
    written = SafeReader(path).read_metadata()
    for key, described in written.state_dict_metadata.items():
        if "item" in key:
            assert sum(chunk.sizes[0] for chunk in described.chunks) == described.size[0], key


class TablesOnly(InInit):
    def build(self):
        super().build()
        self.tower = nn.Identity()

    def forward(self, batch):
        return self.embeddings(batch["ids"]).values().sum(dim=1)


def test_rows_are_worked_on_and_written_once(tmp_path):
    def run(groups):
        pl.seed_everything(3, verbose=False)
        runner = trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", replica_groups=groups))
        module = TablesOnly()
        runner.fit(module, loader(2))
        runner.save_checkpoint(tmp_path / f"{groups}.ckpt")
        state = module.state_dict()
        staged = stage(tmp_path / "x.ckpt", {"state_dict": state}, runner.optimizers[0].table_state(), copy=True)
        sharded = [key for key, value in {**state, **staged.state}.items() if isinstance(value, ShardedTensor)]
        assert sharded
        copied = sum(value.local_shards()[0].tensor.numel() for value in staged.state.get("model", {}).values())
        return {table: runner.strategy.local_rows(table) for table in ("item", "user")}, copied, plain_module(module)

    for groups in (2, 4):
        ranks = run_ranks(run, 4, groups)
        plain = ranks[0][2]
        for table in ("item", "user"):
            parts = sorted((rows[table] for rows, _, _ in ranks), key=lambda part: part[0])
            assert [first for first, _ in parts] == [sum(len(rows) for _, rows in parts[:rank]) for rank in range(4)]
            whole = plain.state_dict()[f"embeddings.embedding_bags.{table}.weight"]
            assert torch.equal(torch.cat([rows for _, rows in parts]), whole)
        assert sum(copied for _, copied, _ in ranks) == sum(value.numel() for value in plain.state_dict().values())
        read = plain_module(tmp_path / f"{groups}.ckpt", TablesOnly()).state_dict()
        assert all(torch.equal(read[key], value) for key, value in plain.state_dict().items())


def test_look_ahead_changes_no_loss(monkeypatch):
    sent, used = LookupGuard._sent_before, []
    monkeypatch.setattr(LookupGuard, "_sent_before", lambda *args: used.append(sent(*args)) or used[-1])

    def run(groups, look_ahead):
        pl.seed_everything(5, verbose=False)
        module = InInit(dropout=0.3)
        strategy = TorchRecStrategy(Adagrad(lr=0.1), sharding="row_wise", replica_groups=groups, look_ahead=look_ahead)
        trainer(strategy).fit(module, loader(6))
        return module.losses

    def both():
        for groups in (2, 4):
            assert run(groups, look_ahead=False) == run(groups, look_ahead=True)
        return len([exchange for exchange in used if exchange is not None])

    assert run_ranks(both, 4) == [2 * 4] * 4  # from the third of six steps on


def test_ranks_with_different_numbers_of_evaluation_batches_measure_all():
    def measure(**settings):
        pl.seed_everything(5, verbose=False)
        module = Measured()
        strategy = TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", failure_timeout=20.0, **settings)
        return trainer(strategy).validate(module, mine((1, 0, 3, 2)), **QUIET)[0], module.seen

    alone, seen = run_ranks(measure, 1)[0]
    ranks = run_ranks(lambda: measure(replica_groups=2), 4)
    assert sorted(number for _, some in ranks for number in some) == seen
    for found, _ in ranks:
        assert found == pytest.approx(alone, abs=2e-6)


def test_an_id_outside_its_table_ends_all_groups():
    def run():
        strategy = TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", replica_groups=2)
        value = 50 if dist.get_rank() == 3 else 0
        trainer(strategy).fit(InInit(), DataLoader(bad_batch("history", value), batch_size=None))

    with pytest.raises(RankError, match=r"ids must be in \[0, 50\), got 50 on rank 3") as told:
        run_ranks(run, 4, timeout=30)
    assert "did not end within" not in str(told.value)
    assert all(f"rank {rank} failed" in str(told.value) for rank in range(4))


class Outside(InInit):
    """Trains a table where no training step is under way."""

    def on_train_batch_end(self, *args):
        self(batches(1)[0]).sum().backward()


REFUSED = [
    (InInit, {"replica_groups": 0}, "replica_groups must be above 0, got 0"),
    (InInit, {"replica_groups": 3}, "replica_groups must divide the number of ranks, got 3 groups of 2 ranks"),
    (InInit, {"replica_groups": 2, "replicate": "all"}, "replica_groups=2 is about sharded tables"),
    (InInit, {"replica_groups": 2, "sharding": "table_row_wise"}, "cuts tables by machine, which replica_groups=2"),
    (Outside, {"replica_groups": 2}, "a backward pass outside of training_step would train its tables in one"),
]


def test_what_would_train_something_else_is_refused():
    def run(kind, settings):
        try:
            trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), **settings)).fit(kind(), loader(2))
        except (ValueError, RuntimeError) as error:
            return str(error)

    def taken_over():
        module = InInit()
        trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1), replica_groups=2)).fit(module, loader(1))
        with pytest.raises(ValueError, match="this module's tables are sharded already"):
            trainer(TorchRecStrategy(RowWiseAdagrad(lr=0.1))).fit(module, loader(1))

    for told in run_ranks(lambda: ([run(kind, settings) for kind, settings, _ in REFUSED], taken_over()), 2):
        for message, (_, settings, expected) in zip(told[0], REFUSED, strict=True):
            assert expected in (message or ""), settings


def test_the_plan_says_groups_and_what_peers_send():
    class Asked(InInit):
        def pooling_factors(self):
            return {"history": 3.0, "who": 1.0}

        def bags_per_step(self):
            return {"history": 4, "who": 4}

    def run(groups):
        strategy = TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", replica_groups=groups)
        trainer(strategy).fit(Asked(), loader(1))
        return strategy.plan_report

    plan = run_ranks(run, 4, 2)[0]
    assert str(plan).startswith("Embedding tables on 4 ranks in 2 replica groups of 2 (cpu):")
    item, user = plan.tables
    assert item.rows_on_rank == [25] * 4
    assert item.state_bytes_on_rank == [25 * 4] * 4
    # 8 bytes an id and a length, 4 a number. In the group: ids and lengths there, vectors back, gradients there.
    within = (4 * 3 / 2 + 4) * 8 + 4 * 8 * 4 + 4 * 8 * 4
    # To the peer: ids and lengths of both ranks of the group, and the gradients of their bags.
    peer = (2 * 4 * 3 / 2 + 2 * 4) * 8 + 2 * 4 * 8 * 4
    assert item.sent_on_rank == [within + peer] * 4
    within = (4 * 16 / 31 + 4) * 8 + 2 * 4 * 8 * 4
    peer = (2 * 4 * 16 / 31 + 2 * 4) * 8 + 2 * 4 * 8 * 4
    assert user.sent_on_rank[0] == pytest.approx(within + peer, rel=0.05)
    assert sum(run_ranks(run, 4, 1)[0].tables[0].rows_on_rank) == 50
