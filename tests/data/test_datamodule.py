import pickle
import subprocess
import sys
from dataclasses import fields

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_mvrec.data import (
    CoveringWindows,
    EventsDataModule,
    FullCatalogue,
    LastWindow,
    PopularityNegatives,
    SyntheticEvents,
    UniformNegatives,
)


def module(folder, **settings):
    # One example a user, unless a test says otherwise: 60 examples.
    settings = {"targets": ["buy"], "batch_size": 16, "max_len": 8, "windows": LastWindow(), **settings}
    data = EventsDataModule(SyntheticEvents(num_users=60, levels=4), store_dir=str(folder), **settings)
    data.prepare_data()
    data.setup()
    return data


def leaves(value):
    """All tensors of a batch, in a fixed order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if hasattr(value, "lengths") and hasattr(value, "values"):
        return [value.values(), value.lengths()]
    if hasattr(value, "__dataclass_fields__"):
        return [leaf for field in fields(value) for leaf in leaves(getattr(value, field.name))]
    return []


def equal(one, other):
    pairs = list(zip(leaves(one), leaves(other), strict=True))
    return len(pairs) > 10 and all(torch.equal(a, b) for a, b in pairs)


class Recorder(pl.LightningModule):
    """Keeps every training batch by epoch, and trains a single number so that checkpoints have something to hold."""

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(1))
        self.seen = {}

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).append(batch)
        return self.number.sum()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, folder, epochs, ckpt=None, **checkpoint):
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(dirpath=folder, filename="{epoch}", save_top_k=-1, **checkpoint)],
    )
    trainer.fit(recorder, data, ckpt_path=ckpt)
    return recorder.seen


# Lightning saves either when validation ends, inside the epoch, or after the epoch.
@pytest.mark.parametrize(("num_workers", "checkpoint"), [(0, {}), (2, {"save_on_train_epoch_end": True})])
def test_a_resumed_run_reads_the_batches_and_negatives_of_an_uninterrupted_one(tmp_path, num_workers, checkpoint):
    settings = {"num_workers": num_workers, "negatives": PopularityNegatives(5)}
    whole = fit(module(tmp_path, **settings), tmp_path / "whole", 4, **checkpoint)
    first = fit(module(tmp_path, **settings), tmp_path / "cut", 2, **checkpoint)
    rest = fit(module(tmp_path, **settings), tmp_path / "cut", 4, str(tmp_path / "cut" / "epoch=1.ckpt"), **checkpoint)
    assert sorted(whole) == [0, 1, 2, 3]
    assert sorted(rest) == [2, 3]
    for epoch, batches in whole.items():
        resumed = (first if epoch < 2 else rest)[epoch]
        assert len(batches) == len(resumed) == 4
        assert all(equal(a, b) for a, b in zip(batches, resumed, strict=True))
    assert not equal(whole[0][0], whole[1][0])


def test_every_rank_gets_as_many_batches_and_together_they_are_the_global_batch(tmp_path):
    data = module(tmp_path, negatives=UniformNegatives(7), batch_size=17)
    whole = list(data.loader("train"))
    data._place = lambda: (0, 3)
    parts = [list(data.loader("train"))]
    for rank in (1, 2):
        data._place = lambda rank=rank: (rank, 3)
        parts.append(list(data.loader("train")))
    assert [len(part) for part in parts] == [len(whole)] * 3
    for batch, *ranks in zip(whole, *parts, strict=True):
        examples = torch.cat([part.example_B for part in ranks])
        assert sorted(examples[examples >= 0].tolist()) == sorted(batch.example_B.tolist())
        assert {part.batch_size for part in ranks} == {-(-batch.batch_size // 3)}
        weights = [part.weight_BK.sum().item() for part in ranks]
        assert sum(weights) == batch.weight_BK.sum().item()
        # The mean over ranks of each rank's sum / total_weight is the global mean.
        for part in ranks:
            assert part.total_weight == pytest.approx(sum(weights) / 3)
            assert torch.equal(part.item_row_M[part.negative], batch.item_row_M[batch.negative])


def test_negatives_of_each_target_do_not_depend_on_the_world_size(tmp_path):
    data = module(tmp_path, negatives=UniformNegatives(3, per_target=True), batch_size=17)
    whole = {}
    for batch in data.loader("train"):
        for row, example in enumerate(batch.example_B.tolist()):
            whole[example] = batch.item_row_M[batch.negative[row][batch.weight_BK[row] > 0]]
    found = 0
    for rank in range(3):
        data._place = lambda rank=rank: (rank, 3)
        for batch in data.loader("train"):
            for row, example in enumerate(batch.example_B.tolist()):
                if example >= 0:
                    found += 1
                    negative = batch.item_row_M[batch.negative[row][batch.weight_BK[row] > 0]]
                    assert torch.equal(negative, whole[example])
    assert found == len(whole) == 60


def test_a_row_that_evens_out_ranks_has_no_event_no_target_and_no_weight(tmp_path):
    data = module(tmp_path, batch_size=59)  # 60 users: the second global batch has one
    data._place = lambda: (1, 2)
    batch = list(data.loader("train"))
    rows = [(b, row) for b in batch for row in torch.nonzero(b.example_B < 0).flatten().tolist()]
    assert len(rows) == 2  # 59 on two ranks leave one row, 1 on two ranks another
    for b, row in rows:
        assert b.weight_BK[row].sum() == 0
        assert b.asof_BKV[row].sum() == 0
        assert b.users["user_id"].values()[row] == 0
        assert all(view.lengths_B[row] == 0 for view in b.views.values())


def test_a_user_of_training_is_read_once_an_epoch_and_order_changes_with_the_epoch(tmp_path):
    loader = module(tmp_path).train_dataloader()
    orders = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        orders.append(torch.cat([batch.example_B for batch in loader]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(60))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("stage", ["val", "test"])
@pytest.mark.parametrize("eval_max_targets", [1, 3])
def test_evaluation_covers_every_target_exactly_once(tmp_path, stage, eval_max_targets):
    data = module(tmp_path, eval_max_targets=eval_max_targets)
    found = []
    for batch in data.loader(stage):
        mask = batch.weight_BK > 0
        assert batch.target_BK.shape[1] <= eval_max_targets
        found += list(zip(batch.item_row_M[batch.target_BK[mask]].tolist(), batch.time_BK[mask].tolist(), strict=True))
    targets = data.store.targets(stage)
    assert sorted(found) == sorted(zip(targets.item.tolist(), targets.time.tolist(), strict=True))


def test_covering_windows_train_on_every_target_and_the_last_window_on_the_last(tmp_path):
    last = module(tmp_path, max_targets=2, max_len=100)
    covering = module(tmp_path, max_targets=2, max_len=100, windows=CoveringWindows())
    number = {
        name: sum(int((batch.weight_BK > 0).sum()) for batch in data.loader("train"))
        for name, data in (("last", last), ("covering", covering))
    }
    targets = last.store.targets("train")
    _, per_user = np.unique(targets.user, return_counts=True)
    assert number == {"last": int(np.minimum(per_user, 2).sum()), "covering": len(targets)}


def test_prediction_reads_every_user_once_with_all_that_is_known(tmp_path):
    data = module(tmp_path, max_len=100, negatives=UniformNegatives(3))
    batches = list(data.predict_dataloader())
    assert sum(batch.batch_size for batch in batches) == 60
    for name in data.schema.view_names:
        events = sum(int(batch.views[name].lengths_B.sum()) for batch in batches)
        assert events == len(data.store.view(name).items)
    assert all(batch.weight_BK.sum() == 0 and batch.negative is None for batch in batches)


def test_the_whole_catalogue_makes_positions_rows(tmp_path):
    data = module(tmp_path, negatives=FullCatalogue())
    batch = next(iter(data.train_dataloader()))
    assert batch.catalogue
    assert batch.item_row_M.tolist() == list(range(data.schema.num_items))


def test_target_weights_apply_in_training_only(tmp_path):
    data = module(tmp_path, targets=["cart", "buy"], target_weights={"cart": 0.25})
    train = {weight for batch in data.loader("train") for weight in batch.weight_BK.flatten().tolist()}
    val = {weight for batch in data.loader("val") for weight in batch.weight_BK.flatten().tolist()}
    assert train == {0.0, 0.25, 1.0}
    assert val == {1.0}


def test_targets_with_too_little_history_are_left_out_on_request(tmp_path):
    data = module(tmp_path, min_history=3, max_len=100)
    for batch in data.loader("train"):
        assert (batch.asof_BKV.sum(-1)[batch.weight_BK > 0] >= 3).all()


@pytest.mark.parametrize("views", [["buy"], ["buy", "click"]])
def test_seen_items_are_those_of_the_named_views_before_the_target(tmp_path, views):
    data = module(tmp_path, filter_seen=views)
    targets = data.store.targets("test")
    checked = 0
    for batch in data.loader("test"):
        seen = np.split(batch.seen_row.numpy(), np.cumsum(batch.seen_lengths_B.numpy())[:-1])
        for example, rows in zip(batch.example_B.tolist(), seen, strict=True):
            met = set()
            for name in views:
                view, number = data.store.view(name), data.schema.view_names.index(name)
                start = view.offsets[targets.user[example]]
                met |= set(view.items[start : start + targets.asof[example, number]].tolist())
            assert set(rows.tolist()) == met - {0, targets.item[example]}
            checked += len(rows)
    assert checked > 0


def test_the_store_is_prepared_once_and_reused_for_equal_settings_only(tmp_path, capsys):
    one = module(tmp_path)
    assert "prepared" in capsys.readouterr().out
    two = module(tmp_path, batch_size=3, max_len=4, seed=9)
    assert "reusing" in capsys.readouterr().out
    assert one.store.path == two.store.path
    assert module(tmp_path, targets=["cart"]).store.path != one.store.path


def test_max_len_by_view_reaches_schema_and_batches(tmp_path):
    data = module(tmp_path, max_len={"click": 3})
    assert [view.max_len for view in data.schema.views] == [3, 50, 50]
    assert max(int(batch.views["click"].lengths_B.max()) for batch in data.train_dataloader()) == 3


def test_a_batch_crosses_a_process_boundary_unchanged(tmp_path):
    batch = next(iter(module(tmp_path, negatives=UniformNegatives(4)).train_dataloader()))
    assert equal(pickle.loads(pickle.dumps(batch)), batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be above 0, got 0"),
        ({"filter_seen": ["buys"]}, "filter_seen must name views"),
        ({"filter_seen": ["buy"], "eval_max_targets": 2}, "eval_max_targets must be 1 with filter_seen"),
        ({"target_weights": {"x": 1.0}}, "target_weights must name views"),
        ({"max_len": {"x": 1}}, "max_len must name views"),
        ({"targets": ["x"]}, "targets must be names of views"),
        ({"targets": []}, "targets must name at least one view"),
        ({"negatives": FullCatalogue(max_items=10)}, "at most 10 items"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        module(tmp_path, **settings)


def test_a_store_can_be_read_without_importing_lightning():
    code = "import sys, lightning_mvrec.data; assert not [m for m in sys.modules if m.startswith('lightning.')]"
    subprocess.run([sys.executable, "-c", code], check=True)
