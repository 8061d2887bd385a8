"""Wishes for the planner: met, or refused with the table and the way out."""

import pytest
import torch
import torch.distributed as dist

from lightning_mvrec.strategies import (
    SGD,
    Adagrad,
    Exchanged,
    Planner,
    RowWiseAdagrad,
    TableConstraint,
    TorchRecStrategy,
    planning,
)
from lightning_mvrec.strategies.constraints import Usage, check_constraints, measured_usage
from lightning_mvrec.strategies.tables import Table, shards
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import InConfigureModel, InInit, collection, loader, trainer


def fitted(planner, module=None, optimizer=None, **settings):
    module = module or InConfigureModel()
    runner = trainer(TorchRecStrategy(optimizer or RowWiseAdagrad(lr=0.1), planner=planner, **settings))
    runner.fit(module, loader(4))
    return runner.strategy, module


def test_a_table_in_half_precision_takes_half_the_memory_and_trains_nearly_alike():
    def run():
        torch.manual_seed(3)
        first = InInit()
        second = InInit()
        second.load_state_dict(first.state_dict())
        _, plain = fitted(None, first)
        strategy, half = fitted(Planner(constraints={"item": TableConstraint(dtype="fp16")}), second)
        item, user = strategy.plan_report.tables
        found = {shard.tensor.dtype for shard in shards(strategy._tables.weight(strategy._tables.tables[0]))}
        return plain.losses, half.losses, (item.dtype, item.weight_bytes_on_rank, user.dtype), found

    plain, half, (item, item_bytes, user), found = run_ranks(run, 1)[0]
    assert (item, user) == ("fp16", "fp32")
    assert item_bytes == [50 * 8 * 2]
    assert found == {torch.float16}
    assert half == pytest.approx(plain, abs=2e-3)
    assert half != plain


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"kernel": "fused_uvm_caching"}, r"table 'item': kernel='fused_uvm_caching' keeps a table in host memory"),
        ({"dtype": "bf16"}, r"table 'item': dtype='bf16' has no kernel on cpu .*use fp16"),
    ],
)
def test_what_a_cpu_does_not_have_is_refused(wish, message):
    def run():
        with pytest.raises(ValueError, match=message):
            fitted(Planner(constraints={"item": TableConstraint(**wish)}))

    run_ranks(run, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel": "dense"}, "kernel must be one of"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"cache": 0.1}, "needs kernel='fused_uvm_caching'"),
        ({"cache": 1.5, "kernel": "fused_uvm_caching"}, "a share of rows"),
    ],
)
def test_a_wish_that_is_none_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TableConstraint(**arguments)


def test_memory_must_be_above_0():
    with pytest.raises(ValueError, match="host_memory_gb must be above 0, got 0"):
        Planner(host_memory_gb=0)


def tables(optimizer=None):
    return [
        Table("t", config, False, optimizer or SGD(lr=0.1)) for config in collection("meta").embedding_bag_configs()
    ]


def test_wishes_name_sharded_tables_and_say_a_sharding_once():
    cpu = torch.device("cpu")
    with pytest.raises(ValueError, match=r"\['itme'\] are not among \['item', 'user'\]"):
        check_constraints(Planner({"itme": TableConstraint()}), tables(), {}, cpu)
    with pytest.raises(ValueError, match="given twice"):
        check_constraints(
            Planner({"item": TableConstraint(sharding="row_wise")}), tables(), {"item": "table_wise"}, cpu
        )


def test_a_device_with_memory_of_its_own_takes_what_a_cpu_refuses():
    wishes = {"item": TableConstraint(kernel="fused_uvm_caching", cache=0.2), "user": TableConstraint(dtype="bf16")}
    check_constraints(Planner(wishes), tables(), {}, torch.device("cuda"))
    made = planning._torchrec_constraint(tables()[0], ["row_wise"], Planner(wishes), {"history": Usage(32.0, 20.5)})
    assert made.sharding_types == ["row_wise"]
    assert made.compute_kernels == ["fused_uvm_caching"]
    assert made.cache_params.load_factor == 0.2
    assert (made.pooling_factors, made.batch_sizes) == ([20.5], [32])


def test_a_sharding_can_be_wished_with_the_rest():
    def run():
        wishes = {"item": TableConstraint(sharding="row_wise"), "user": TableConstraint(sharding="table_wise")}
        strategy, _ = fitted(Planner(wishes), optimizer=Adagrad(lr=0.1))
        return [table.sharding for table in strategy.plan_report.tables]

    assert run_ranks(run, 2)[0] == ["row_wise", "table_wise"]


class Counting(InConfigureModel):
    def pooling_factors(self):
        return {"history": 2.5, "who": 1.0}

    def bags_per_step(self):
        return {"history": 4.0, "who": 4.0}


def test_what_a_module_measures_reaches_plan_and_report():
    seen = {}

    def run():
        original = planning._torchrec_constraint

        def note(table, kinds, planner, usage):
            made = original(table, kinds, planner, usage)
            seen[table.name] = (made.pooling_factors, made.batch_sizes)
            return made

        planning._torchrec_constraint = note
        strategy, _ = fitted(None, Counting(), sharding={"item": "row_wise", "user": "table_wise"})
        item, user = strategy.plan_report.tables
        return seen, item.sent_on_rank, sorted(user.sent_on_rank), str(strategy.plan_report)

    for told, item, user, text in run_ranks(run, 2):
        assert told == {"item": ([2.5], [4]), "user": ([1.0], [4])}
        # each rank: ids 4 * 2.5 / 2 and 4 lengths, 4 vectors forth, 4 gradients back, of 8 numbers of 4 bytes
        assert item == [(5 + 4) * 8 + 4 * 8 * 4 + 4 * 8 * 4] * 2
        # the owner: 4 vectors; the other: 4 ids, 4 lengths and 4 gradients
        assert user == sorted([4 * 8 * 4, (4 + 4) * 8 + 4 * 8 * 4])
        assert "Rank 0 holds" in text
        assert "it sends about" in text


def test_without_measurements_the_report_says_so():
    class Trainer:
        datamodule = None
        lightning_module = object()

    assert measured_usage(Trainer()) == {}

    def run():
        return str(fitted(None, sharding="row_wise")[0].plan_report).splitlines()

    lines = run_ranks(run, 2)[0]
    unknown = "What is sent for ['item', 'user'] is not known"
    assert lines[-1] == f"{unknown}: no module or data module has pooling_factors()."
    assert lines[-3].startswith("Rank 0 holds 41 rows: 1.312 kB of weights and 164 B of optimizer state")


def test_a_plan_that_does_not_fit_is_refused_on_all_ranks_with_what_is_missing():
    def run():
        planner = Planner(host_memory_gb=2e-6)  # 2 kB a rank; the tables have 50 and 31 rows of 36 bytes
        with pytest.raises(ValueError, match="no plan fits") as told:
            fitted(planner, sharding="table_wise")
        assert dist.get_world_size() == 2
        return str(told.value)

    first, second = run_ranks(run, 2)
    assert first == second
    assert "no plan fits the tables ['item', 'user'] into host memory" in first
    assert "2 kB a rank" in first


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_vectors_exchanged_in_16_bits_train_nearly_alike_and_halve_what_is_sent(sharding):
    def run():
        found = []
        for exchanged in (Exchanged(), Exchanged(forward="fp16", backward="bf16")):
            torch.manual_seed(3)
            strategy, module = fitted(Planner(exchanged=exchanged), Counting(), sharding=sharding)
            found.append((module.losses, sum(sum(table.sent_on_rank) for table in strategy.plan_report.tables)))
        return found

    for (plain, all_bytes), (halved, fewer_bytes) in run_ranks(run, 2):
        assert halved == pytest.approx(plain, abs=2e-3)
        assert halved != plain
        # 4 vectors of 8 numbers forth, by the owner of the rows, and their gradients back, with 2 bytes less a number;
        # the rows of a table have two owners, each with a part of every sum, or one
        owners = {"row_wise": 2, "table_wise": 1}[sharding]
        assert all_bytes - fewer_bytes == 2 * owners * (4 * 8 * 2 + 4 * 8 * 2)  # two tables


def test_a_type_that_is_not_exchanged_is_refused():
    with pytest.raises(ValueError, match=r"backward must be one of .*'int8'"):
        Exchanged(backward="int8")
