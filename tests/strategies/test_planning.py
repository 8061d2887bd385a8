import json

import pytest
import torch
import torch.distributed as dist

from lightning_mvrec.strategies import SGD, Adagrad, RowWiseAdagrad, TorchRecStrategy
from lightning_mvrec.strategies.planning import BagSharder, SequenceSharder
from lightning_mvrec.strategies.report import PlanReport, TableReport
from tests.distributed.launch import run_ranks
from tests.strategies.stranger import InConfigureModel, InInit, loader, trainer


def setup(strategy, folder=None, kind=InConfigureModel, **kwargs):
    module = kind()
    runner = trainer(strategy, folder, **kwargs)
    runner.validate(module, loader(1), verbose=False)
    return runner.strategy


def test_row_wise_no_rank_holds_all_rows(tmp_path):
    def run():
        strategy = TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding={"item": "row_wise"})
        setup(strategy, str(tmp_path), enable_checkpointing=True)  # the plan lies where checkpoints do
        return strategy.local_rows("item")[1].shape[0]

    assert run_ranks(run, 2) == [25, 25]
    plan = json.loads((tmp_path / "plan.json").read_text())
    item = plan["tables"][0]
    assert plan["world_size"] == 2
    assert (item["table"], item["rows"], item["dim"], item["sharding"]) == ("item", 50, 8, "row_wise")
    assert item["optimizer"] == "RowWiseAdagrad(lr=0.1, eps=1e-08)"
    assert item["rows_on_rank"] == [25, 25]
    assert item["bytes_on_rank"] == [25 * (8 + 1) * 4] * 2  # weights and one sum a row


def test_one_kind_of_sharding_is_for_every_sharded_table():
    def run(**plan):
        report = setup(TorchRecStrategy(Adagrad(lr=0.1), sharding="column_wise", **plan)).plan_report
        return [table.sharding for table in report.tables]

    assert run_ranks(run, 2)[0] == ["column_wise"] * 2
    assert run_ranks(lambda: run(replicate="all"), 1)[0] == ["replicated"] * 2


def test_table_wise_one_rank_holds_a_table_and_the_other_none():
    def run():
        strategy = setup(TorchRecStrategy(Adagrad(lr=0.1), sharding={"item": "table_wise", "user": "table_wise"}))
        return [report.rows_on_rank for report in strategy.plan_report.tables]

    first, second = run_ranks(run, 2)
    assert first == second
    assert sorted(first[0]) == [0, 50]
    assert sorted(first[1]) == [0, 31]


def test_replicated_every_rank_holds_all():
    def run():
        report = setup(TorchRecStrategy(SGD(lr=0.1), replicate="all")).plan_report
        return [(table.sharding, table.kernel, table.rows_on_rank) for table in report.tables]

    assert run_ranks(run, 2)[0] == [("replicated", "dense", [50, 50]), ("replicated", "dense", [31, 31])]


def test_local_rows_of_all_ranks_are_the_table():
    def run():
        parts = []
        for kwargs in ({"sharding": {"item": "row_wise"}}, {"sharding": {"item": "table_wise"}}, {"replicate": "all"}):
            first, rows = setup(TorchRecStrategy(SGD(lr=0.1), **kwargs), kind=Seeded).local_rows("item")
            assert not rows.requires_grad
            parts.append((first, rows))
        return parts

    ranks = run_ranks(run, 2)
    wholes = []
    for kind in range(3):
        pieces = sorted((ranks[rank][kind] for rank in range(2)), key=lambda piece: (piece[0], len(piece[1])))
        assert [first for first, _ in pieces] == ([0, 0] if kind == 1 else [0, 25])
        wholes.append(torch.cat([rows for _, rows in pieces]))
    assert all(whole.shape == (50, 8) for whole in wholes)
    assert torch.equal(wholes[0], wholes[1])
    assert torch.equal(wholes[0], wholes[2])


class Seeded(InConfigureModel):
    def __init__(self):
        torch.manual_seed(5 + dist.get_rank())  # only rank 0's seed counts
        super().__init__()


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (TorchRecStrategy(SGD(lr=0.1), sharding={"itme": "row_wise"}), r"\['itme'\] are not among \['item', 'user'\]"),
        (
            TorchRecStrategy(SGD(lr=0.1), sharding={"item": "diagonal"}),
            r"sharding\['item'\] must be one of .*'diagonal'",
        ),
        (TorchRecStrategy(SGD(lr=0.1), sharding={"item": "data_parallel"}), "use `replicate`"),
        (TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding={"item": "column_wise"}), "a sum per slice of a row"),
        (TorchRecStrategy(SGD(lr=0.1), sharding={"item": "row_wise"}, replicate="all"), "must name sharded tables"),
    ],
)
def test_a_sharding_that_cannot_be_is_refused(strategy, message):
    def run():
        with pytest.raises(ValueError, match=message):
            setup(strategy)

    run_ranks(run, 1)


def test_local_rows_wants_whole_rows_of_known_tables():
    def run():
        with pytest.raises(ValueError, match="once a stage of the Trainer has been set up"):
            TorchRecStrategy().local_rows("item")
        strategy = setup(TorchRecStrategy(SGD(lr=0.1), sharding={"item": "column_wise"}))
        with pytest.raises(ValueError, match="no rank has whole rows"):
            strategy.local_rows("item")
        with pytest.raises(ValueError, match="no table 'itme'"):
            strategy.local_rows("itme")

    run_ranks(run, 2)


def test_a_plan_reads_well():
    table = TableReport(
        "item", "model.items", 1000, 8, "row_wise", "fused", "SGD(lr=0.1)", [500, 500], [16_000_000] * 2
    )
    text = str(PlanReport(2, "cpu", [table]))
    assert text.splitlines()[0] == "Embedding tables on 2 ranks (cpu):"
    assert "500 | 500" in text
    assert "16 MB | 16 MB" in text
    many = TableReport("item", "m", 1000, 8, "row_wise", "fused", "SGD(lr=0.1)", list(range(8)), [0] * 8)
    assert str(PlanReport(8, "cpu", [many])).splitlines()[-1].split()[-8:] == ["0", "..", "7", "0", "B", "..", "0", "B"]


def test_data_parallel_is_never_on_offer():
    for sharder in (BagSharder(), SequenceSharder()):
        assert "data_parallel" not in sharder.sharding_types("cpu")
        assert sharder.compute_kernels("row_wise", "cpu") == ["fused"]


def test_the_planner_may_only_choose_what_trains_alike():
    def run():
        return {table.sharding for table in setup(TorchRecStrategy(SGD(lr=0.1)), kind=InInit).plan_report.tables}

    assert run_ranks(run, 2)[0] <= {"table_wise", "row_wise"}
