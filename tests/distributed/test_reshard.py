"""Saved by one plan on some processes, trained on by another plan on others: the run is the same.

The uninterrupted run is that of the plan that saved; both sum in their own order, hence the 1e-6.
"""

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from lightning_mvrec.strategies import Adagrad, RowWiseAdagrad, TorchRecStrategy, plain_module
from tests.distributed.launch import run_ranks
from tests.strategies.first_release import Position
from tests.strategies.stranger import ITEMS, USERS, InConfigureModel, batches, mean_over_ranks, trainer

#: Steps before the save, which comes in the middle of an epoch, and after it.
BEFORE, AFTER, EPOCH = 7, 20, 9
#: TorchRec's planner cuts columns of 128.
WIDTH = 256
PLANS = ["row_wise", "table_wise", "column_wise", "replicated"]


class Positioned(Position):
    """A loader that knows where it is: Lightning puts its state into the checkpoint."""

    def __init__(self):
        self.batches, self.position = batches(EPOCH), 0


class Scheduled(InConfigureModel):
    def configure_model(self):
        if self.embeddings is None:
            super().configure_model()
            tables = [
                EmbeddingBagConfig(num_embeddings=rows, embedding_dim=WIDTH, name=name, feature_names=[feature])
                for rows, name, feature in [(ITEMS, "item", "history"), (USERS, "user", "who")]
            ]
            self.embeddings = EmbeddingBagCollection(tables, device=torch.device("meta"))
            self.tower = torch.nn.Sequential(torch.nn.Linear(2 * WIDTH, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.9), "interval": "step"}]


def strategy(plan, optimizer, **kwargs):
    if plan == "replicated":
        return TorchRecStrategy(optimizer, replicate="all", **kwargs)
    return TorchRecStrategy(optimizer, sharding=plan, **kwargs)


def go(folder, plan, optimizer, steps, resume=None, **kwargs):
    """Train up to ``steps``; return the losses, the weights, and where the loop is."""
    pl.seed_everything(3, verbose=False)
    module = Scheduled()
    keep = ModelCheckpoint(dirpath=folder, every_n_train_steps=BEFORE, save_top_k=-1, filename="{step}")
    runner = trainer(
        strategy(plan, optimizer, **kwargs),
        folder,
        max_epochs=None,
        max_steps=steps,
        enable_checkpointing=True,
        callbacks=[keep],
    )
    runner.fit(module, Positioned(), ckpt_path=resume)
    weights = {key: value.clone() for key, value in plain_module(module).state_dict().items()}
    rates = runner.optimizers[0].param_groups[0]["lr"], [group["lr"] for group in runner.optimizers[0].param_groups]
    return mean_over_ranks(module.losses), weights, (runner.global_step, runner.current_epoch, rates)


def look(path, plan, optimizer):
    """Return the weights and the tables' state as they are after reading, before any step."""
    module = Scheduled()
    runner = trainer(strategy(plan, optimizer), max_epochs=None, max_steps=BEFORE)
    runner.fit(module, Positioned(), ckpt_path=path)
    state = {key: whole(value) for key, value in sorted(runner.optimizers[0].table_state().items())}
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, state)
    total = {}
    for part in everyone:
        for key, pieces in part.items():
            total.setdefault(key, []).extend(pieces)
    merged = {key: merge(pieces) for key, pieces in total.items()}
    return {key: value.clone() for key, value in plain_module(module).state_dict().items()}, merged


def look_and_go(path, folder, plan, optimizer, steps):
    """Do both in the same processes, whose start costs as much as a run."""
    return look(path, plan, optimizer), go(folder, plan, optimizer, steps, path)


def go_and_look(path, folder, plan, optimizer, steps):
    """Train to ``steps``, then read what lies in ``path`` by then."""
    return go(folder, plan, optimizer, steps), look(path, plan, optimizer)


def whole(value):
    if hasattr(value, "local_shards"):
        return [
            (list(shard.metadata.shard_offsets), shard.tensor.clone(), list(value.size()))
            for shard in value.local_shards()
        ]
    return [([0] * value.dim(), value.clone(), list(value.size()))]


def merge(pieces):
    total = torch.full(pieces[0][2], float("nan"))
    for offsets, tensor, _ in pieces:
        place = tuple(slice(first, first + size) for first, size in zip(offsets, tensor.shape, strict=True))
        total[place] = tensor
    return total


CELLS = [
    (2, "row_wise", 1, "table_wise"),
    (1, "table_wise", 2, "row_wise"),
    (2, "row_wise", 2, "replicated"),
    (2, "replicated", 2, "table_wise"),
    (2, "table_wise", 2, "column_wise"),
    (2, "column_wise", 2, "row_wise"),
    (1, "replicated", 2, "column_wise"),
]
SLOW = [
    (size, plan, to_size, to_plan)
    for size, to_size in [(1, 2), (2, 1), (2, 4), (4, 2), (1, 4), (4, 1)]
    for plan in PLANS
    for to_plan in PLANS
    if (size, plan, to_size, to_plan) not in CELLS
]
_saved = {}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The uninterrupted run of each plan once, its checkpoint in the middle, and what the plan itself reads of that."""

    def get(size, plan):
        if (size, plan) not in _saved:
            folder = tmp_path_factory.mktemp(f"{plan}{size}")
            path = folder / f"step={BEFORE}.ckpt"
            results = run_ranks(go_and_look, size, path, folder, plan, Adagrad(lr=0.1), BEFORE + AFTER)
            _saved[size, plan] = path, *results[0]
        return _saved[size, plan]

    yield get
    _saved.clear()


@pytest.mark.parametrize(
    ("size", "plan", "to_size", "to_plan"), [*CELLS, *(pytest.param(*c, marks=pytest.mark.slow) for c in SLOW)]
)
def test_a_run_goes_on_elsewhere(saved, tmp_path, size, plan, to_size, to_plan):
    path, (losses, _, place), (before, state) = saved(size, plan)
    results = run_ranks(look_and_go, to_size, path, tmp_path, to_plan, Adagrad(lr=0.1), BEFORE + AFTER)
    (there, there_state), (on, _, on_place) = results[0]
    assert all(torch.equal(there[key], value) for key, value in before.items())
    assert state.keys() == there_state.keys() == {"item/sum", "user/sum"}
    assert all(torch.equal(there_state[key], value) for key, value in state.items())
    assert state["item/sum"].max() > 0
    assert len(on) == AFTER
    assert on == pytest.approx(losses[BEFORE:], abs=1e-6)
    assert on_place == place


@pytest.mark.parametrize(("plan", "to_plan"), [("row_wise", "table_wise"), ("replicated", "row_wise")])
def test_row_wise_adagrad_goes_on_elsewhere(tmp_path, plan, to_plan):
    optimizer = RowWiseAdagrad(lr=0.1)
    losses = run_ranks(go, 2, tmp_path / "a", plan, optimizer, BEFORE + AFTER)[0][0]
    path = tmp_path / "a" / f"step={BEFORE}.ckpt"
    on = run_ranks(go, 1, tmp_path / "b", to_plan, optimizer, BEFORE + AFTER, path)[0][0]
    assert on == pytest.approx(losses[BEFORE:], abs=1e-6)


def test_a_sum_a_row_is_copied_out_to_columns_and_averaged_in_only_when_asked(saved, tmp_path):
    run_ranks(go, 2, tmp_path, "row_wise", RowWiseAdagrad(lr=0.1), BEFORE)
    path = tmp_path / f"step={BEFORE}.ckpt"
    rows = run_ranks(look, 2, path, "row_wise", RowWiseAdagrad(lr=0.1))[0][1]

    def resume(source, plan, optimizer, convert):
        module = Scheduled()
        runner = trainer(strategy(plan, optimizer, convert_table_state=convert), max_epochs=None, max_steps=BEFORE)
        try:
            runner.fit(module, Positioned(), ckpt_path=source)
        except ValueError as error:
            return str(error)
        return {key: whole(value) for key, value in runner.optimizers[0].table_state().items()}

    mixed = {"item": Adagrad(lr=0.1), "user": RowWiseAdagrad(lr=0.1)}
    message = run_ranks(resume, 1, path, "table_wise", mixed, False)[0]
    assert "TorchRecStrategy(convert_table_state=True)" in message
    assert "inexact" in message
    for plan, columns in [("column_wise", {0, 128}), ("replicated", {0})]:
        copied = run_ranks(resume, 2, path, plan, Adagrad(lr=0.1), True)
        assert {column for found in copied for pieces in found.values() for (_, column), _, _ in pieces} == columns
        for found in copied:
            for key, pieces in found.items():
                for (row, column), tensor, _ in pieces:
                    expected = rows[key][row : row + tensor.shape[0], None].expand(tensor.shape)
                    assert torch.equal(tensor, expected), (key, row, column)
    only_item = run_ranks(resume, 1, path, "table_wise", mixed, True)[0]
    assert only_item["item/sum"][0][1].shape == (ITEMS, WIDTH)
    assert torch.equal(only_item["user/sum"][0][1], rows["user/sum"])

    columns = run_ranks(look, 2, saved(2, "column_wise")[0], "column_wise", Adagrad(lr=0.1))[0][1]
    averaged = {}
    for found in run_ranks(resume, 2, saved(2, "column_wise")[0], "row_wise", RowWiseAdagrad(lr=0.1), True):
        for key, pieces in found.items():
            averaged.setdefault(key, []).extend(pieces)
    for key, pieces in averaged.items():
        assert torch.allclose(merge(pieces), columns[key].mean(dim=1), rtol=1e-6, atol=0)
