"""Four ranks in replica groups train, save, evaluate and end as four in one group, and as one process."""

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.utils.data import DataLoader
from torchrec import EmbeddingCollection, EmbeddingConfig

from lightning_mvrec.strategies import (
    SGD,
    Adagrad,
    Exchanged,
    Planner,
    RowWiseAdagrad,
    TableConstraint,
    TorchRecStrategy,
    plain_module,
)
from lightning_mvrec.strategies.checkpoint_read import SafeReader
from lightning_mvrec.strategies.checkpoint_stage import stage
from lightning_mvrec.strategies.lookups import LookupGuard
from lightning_mvrec.strategies.tables import shards
from tests.distributed.launch import RankError, run_ranks
from tests.distributed.test_reshard import AFTER, BEFORE, go, look
from tests.strategies.stranger import DIM, ITEMS, USERS, InInit, TablesOnly, batches, loader, trainer
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
    ranks = run_ranks(run, 4)  # each has put its own group's shards together
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


STEPS = 6
#: A number is off by at most this part of itself when it is rounded to the type, which has 11 or 8 bits.
ROUNDING = {"fp16": 2.0**-11, "bf16": 2.0**-8}
NOISE = 2e-6  # of float32, in some dozen additions of numbers up to 2


class Steady(TablesOnly):
    """The gradient of a looked-up number is above 0 and does not depend on the weights: every step moves them down."""

    def build(self):
        super().build()
        self.seen = []

    def forward(self, batch):
        return self.embeddings(batch["ids"]).values()

    def training_step(self, batch, batch_idx):
        found = self(batch)
        draw = torch.Generator().manual_seed(10 * batch_idx + dist.get_rank())
        return (found * (0.5 + torch.rand(found.shape, generator=draw))).sum()

    def validation_step(self, batch, batch_idx):
        self.seen.append(self(batch))


class SteadySequences(Steady):
    def build(self):
        super().build()
        sizes = {"item": (ITEMS, "history"), "user": (USERS, "who")}
        self.embeddings = EmbeddingCollection(
            [
                EmbeddingConfig(num_embeddings=rows, embedding_dim=DIM, name=name, feature_names=[feature])
                for name, (rows, feature) in sizes.items()
            ]
        )

    def forward(self, batch):
        found = self.embeddings(batch["ids"])
        return torch.cat([summed(found[name].values(), found[name].lengths()) for name in ("history", "who")], dim=1)


def summed(vectors, lengths):
    return torch.segment_reduce(vectors, "sum", lengths=lengths.long(), initial=0.0)


def steady(kind, optimizer, sharding, groups, planner):
    """First weights and those after training, the shards of this rank, and what it looks up then for one batch."""
    pl.seed_everything(3, verbose=False)
    module = kind()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    torch.manual_seed(dist.get_rank())  # should a kernel round at random, peers would do it differently
    strategy = TorchRecStrategy(optimizer, sharding=sharding, planner=planner, replica_groups=groups)
    runner = trainer(strategy)
    runner.fit(module, loader(STEPS))
    held = [
        shard.tensor.clone() for table in strategy._tables.tables for shard in shards(strategy._tables.weight(table))
    ]
    runner.validate(module, loader(1), verbose=False)
    return before, plain_module(module).state_dict(), held, module.seen[0]


@pytest.mark.parametrize(("forward", "backward"), [("fp16", "bf16"), ("bf16", "fp16")])
def test_vectors_exchanged_in_16_bits_are_off_by_their_rounding_and_peers_not_at_all(forward, backward):
    """A gradient is rounded once, on its way to the rows; of a vector the part of each owner is, and then their sum.

    With ``g (1 + a)`` in place of every gradient ``g``, where ``abs(a) <= u`` and ``g > 0``, SGD moves a row at most
    ``1 + u`` times as far. Adagrad divides by the root of a sum of squares, which becomes ``1 - u`` times itself or
    more: it moves a row at most ``(1 + u) / (1 - u)`` times as far.
    """
    u, planner = ROUNDING[backward], Planner(exchanged=Exchanged(forward, backward))
    further = {SGD: u, Adagrad: (1 + u) / (1 - u) - 1, RowWiseAdagrad: (1 + u) / (1 - u) - 1}
    cases = [
        (Steady, SGD, "row_wise", 2),
        (Steady, RowWiseAdagrad, "row_wise", 2),
        (Steady, Adagrad, "column_wise", 2),
        (SteadySequences, RowWiseAdagrad, "row_wise", 2),
        (SteadySequences, SGD, "table_wise", 2),
        (Steady, RowWiseAdagrad, "row_wise", 4),
    ]

    def run():
        return [
            [steady(kind, optimizer(lr=0.1), sharding, groups, wish) for wish in (None, planner)]
            for kind, optimizer, sharding, groups in cases
        ] + [[batches(1)[0]["ids"]]]

    ranks = run_ranks(run, 4)
    for number, (kind, optimizer, sharding, groups) in enumerate(cases):
        case = kind.__name__, optimizer.__name__, sharding, groups
        (before, exact, _, _), (_, rounded, _, _) = ranks[0][number]
        size = 4 // groups
        for key, value in exact.items():
            moved = before[key] - value
            assert (moved > -NOISE).all(), case
            far = (rounded[key] - value).abs()
            assert (far <= further[optimizer] * moved + NOISE).all(), (case, key, (far / moved).max())
            assert size == 1 or far.max() > 0.01 * u * moved.max(), case  # it was rounded
        for rank in range(4):
            for own, first in zip(ranks[rank][number][1][2], ranks[rank % size][number][1][2], strict=True):
                assert torch.equal(own, first), (case, rank)
            ids, found = ranks[rank][-1][0], ranks[rank][number][1][3]
            sums, most = [], []
            for feature, table in (("history", "item"), ("who", "user")):
                weight = next(value for key, value in rounded.items() if f".{table}." in key)
                vectors, lengths = weight[ids[feature].values()], ids[feature].lengths()
                sums.append(summed(vectors, lengths))
                most.append(summed(vectors.abs(), lengths))
            sums, most = torch.cat(sums, dim=1), torch.cat(most, dim=1)
            far = (found - sums).abs()
            assert (far <= ((1 + ROUNDING[forward]) ** 2 - 1) * most + NOISE).all(), (case, rank)
            assert size == 1 or far.max() > 0.01 * ROUNDING[forward] * most.max(), (case, rank)


def test_tables_in_half_precision_are_off_by_the_rounding_of_each_step_and_peers_not_at_all():
    planner = Planner(constraints={name: TableConstraint(dtype="fp16") for name in ("item", "user")})

    def run():
        return [steady(Steady, RowWiseAdagrad(lr=0.1), "row_wise", 2, wish) for wish in (None, planner)]

    ranks = run_ranks(run, 4)
    (before, exact, _, _), (_, half, _, _) = ranks[0]
    for key, value in exact.items():
        largest = torch.maximum(before[key].abs(), value.abs())
        far = (half[key].float() - value).abs()
        assert (far <= (1 + STEPS) * ROUNDING["fp16"] * largest + NOISE).all(), key  # when it is made, and in each step
        assert far.max() > 0
    for rank in range(4):
        for own, first in zip(ranks[rank][1][2], ranks[rank % 2][1][2], strict=True):
            assert own.dtype == torch.float16
            assert torch.equal(own, first), rank


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
        settings = {"replica_groups": 2, "failure_timeout": 600.0}  # none hangs
        strategy = TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", **settings)
        value = 50 if dist.get_rank() == 3 else 0
        trainer(strategy).fit(InInit(), DataLoader(bad_batch("history", value), batch_size=None))

    with pytest.raises(RankError, match=r"ids must be in \[0, 50\), got 50 on rank 3") as told:
        run_ranks(run, 4)
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

    def run(groups, planner=None):
        strategy = TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", replica_groups=groups, planner=planner)
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
    halved = run_ranks(run, 4, 2, Planner(exchanged=Exchanged("fp16", "bf16")))[0].tables[0]
    assert halved.sent_on_rank == [within - 2 * 4 * 8 * 2 + peer] * 4  # peers give each other float32
    within = (4 * 16 / 31 + 4) * 8 + 2 * 4 * 8 * 4
    peer = (2 * 4 * 16 / 31 + 2 * 4) * 8 + 2 * 4 * 8 * 4
    assert user.sent_on_rank[0] == pytest.approx(within + peer, rel=0.05)
    assert sum(run_ranks(run, 4, 1)[0].tables[0].rows_on_rank) == 50
