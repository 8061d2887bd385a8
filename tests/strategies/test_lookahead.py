"""A step ahead: the same losses, the same positions, and every rank at the same point whatever happens to one."""

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchrec import KeyedJaggedTensor

from lightning_mvrec.strategies import RowWiseAdagrad, TorchRecStrategy, lookahead
from lightning_mvrec.strategies.lookups import LookupGuard
from tests.distributed.launch import RankError, run_ranks
from tests.strategies.stranger import InInit, batches, loader, trainer
from tests.strategies.test_held import Sequence

PLANS = {"row_wise": {"sharding": "row_wise"}, "table_wise": {"sharding": "table_wise"}}


class Count(Callback):
    """How many lookups of a step used an exchange that began a step before, and the Trainer's counters."""

    def __init__(self):
        self.used = []
        self.steps = []

    def on_train_batch_start(self, runner, module, batch, batch_idx):
        self.before = Used.count

    def on_train_batch_end(self, runner, module, outputs, batch, batch_idx):
        self.used.append(Used.count - self.before)
        self.steps.append((batch_idx, runner.global_step))


class Used:
    count = 0


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    found = LookupGuard._sent_before

    def counted(self, features):
        exchange = found(self, features)
        Used.count += exchange is not None
        return exchange

    monkeypatch.setattr(LookupGuard, "_sent_before", counted)


class Dropped(InInit):
    def __init__(self):
        super().__init__(dropout=0.3)


def fit(look_ahead, data=None, kind=Dropped, plan="row_wise", fold=None, strategy=(), resume=None, **settings):
    """Losses of this rank, its weights, what a callback has counted."""
    pl.seed_everything(11, verbose=False)
    module, count = kind(), Count()
    callbacks = [count, *settings.pop("callbacks", [])]
    runner = trainer(
        TorchRecStrategy(RowWiseAdagrad(lr=0.1), look_ahead=look_ahead, **PLANS[plan], **dict(strategy)),
        callbacks=callbacks,
        folder=fold,
        **settings,
    )
    runner.fit(module, data() if data else loader(6, uneven=True), *settings.pop("val", ()), ckpt_path=resume)
    return module.losses, count


def both(*args, **kwargs):
    """Losses without and with look-ahead, and how many lookups of each step were begun a step before."""
    without, _ = fit(False, *args, **kwargs)
    ahead, count = fit(True, *args, **kwargs)
    return without, ahead, count.used


@pytest.mark.parametrize("plan", list(PLANS))
@pytest.mark.parametrize("kind", [Dropped, Sequence])
def test_losses_are_bit_equal_and_all_but_two_steps_are_ahead(kind, plan):
    for without, ahead, used in run_ranks(lambda: both(kind=kind, plan=plan, max_epochs=2), 2):
        assert without == ahead
        assert used == [0, 0, 1, 1, 1, 1, *[0, 1, 1, 1, 1, 1]]


def test_validation_inside_the_epoch_sees_its_own_batches_and_loses_none():
    class Watched(Dropped):
        def __init__(self):
            super().__init__()
            self.labels = []

        def training_step(self, batch, batch_idx):
            self.labels.append(("train", batch["label"].tolist()))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx):
            self.labels.append(("val", batch["label"].tolist()))
            loss = nn.functional.binary_cross_entropy_with_logits(self(batch), batch["label"])
            self.losses.append(loss.item())

    def run():
        seen = []
        for ahead in (False, True):
            pl.seed_everything(11, verbose=False)
            module, count = Watched(), Count()
            runner = trainer(strategy(ahead), callbacks=[count], max_epochs=2, val_check_interval=2)
            runner.fit(module, loader(5), loader(2, seed=9))
            seen.append((module.losses, module.labels, count.steps))
        return seen, count.used, runner.global_step

    for (without, ahead), used, steps in run_ranks(run, 2):
        assert without == ahead
        assert used == [0, 0, 1, 1, 1, *[0, 1, 1, 1, 1]]
        assert steps == 10


def strategy(look_ahead, **settings):
    return TorchRecStrategy(RowWiseAdagrad(lr=0.1), sharding="row_wise", look_ahead=look_ahead, **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"limit_train_batches": 4}, [0, 0, 1, 1]),
        ({"max_steps": 4}, [0, 0, 1, 1]),  # ends with a batch on its way
        ({"accumulate_grad_batches": 2}, [0, 0, 1, 1, 1, 1]),
    ],
)
def test_settings_of_the_trainer_keep_their_meaning(settings, expected):
    for without, ahead, used in run_ranks(lambda: both(**settings), 2):
        assert without == ahead
        assert used == expected


class Stream(IterableDataset):
    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return iter(self.items)


@pytest.mark.parametrize("known", [True, False])
def test_uneven_ranks_end_together(known):
    def run():
        def data():
            made = batches(4 + 2 * dist.get_rank())
            return DataLoader(made if known else Stream(made), batch_size=None)

        return both(data)

    for without, ahead, used in run_ranks(run, 2):
        assert without == ahead
        assert used == [0, 0, 1, 1]


def test_one_batch_given_again_and_again_is_a_batch_each_time():
    def run():
        same = batches(1, uneven=True)[0]
        return both(lambda: DataLoader([same] * 5, batch_size=None))

    for without, ahead, used in run_ranks(run, 2):
        assert without == ahead
        assert used == [0, 0, 1, 1, 1]


class Positioned:
    """A loader with state: the number of batches handed out in the epoch."""

    def __init__(self, items):
        self.items, self.first, self.out = items, 0, 0

    def __iter__(self):
        self.out, self.first = self.first, 0
        for item in self.items[self.out :]:
            self.out += 1
            yield item

    def state_dict(self):
        return {"out": self.out}

    def load_state_dict(self, state_dict):
        self.first = state_dict["out"] % len(self.items)


class KnownPositioned(Positioned):
    def __len__(self):
        return len(self.items)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("look_ahead", [True, False])
def test_a_checkpoint_inside_an_epoch_holds_the_position_of_the_batch_in_training(tmp_path, known, look_ahead):
    def run():
        def data():
            return (KnownPositioned if known else Positioned)(batches(6))

        def keep():
            return [ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")]

        whole, _ = fit(look_ahead, data, max_epochs=2, callbacks=keep(), enable_checkpointing=True)
        resumed = {}
        for step in (3, 6, 8):
            resumed[step], _ = fit(look_ahead, data, max_epochs=2, resume=tmp_path / f"step={step}.ckpt")
        return whole, resumed

    for whole, resumed in run_ranks(run, 2):
        assert len(whole) == 12
        for step, losses in resumed.items():
            assert losses == whole[step:], step


def test_what_a_loader_raises_ahead_is_raised_at_its_turn():
    class Failing(KnownPositioned):
        def __iter__(self):
            for number, item in enumerate(self.items):
                if number == 4 and dist.get_rank() == 1:
                    raise OSError("the disk is gone")
                yield item

    def run():
        module = Dropped()
        try:
            trainer(strategy(True)).fit(module, Failing(batches(6)))
        except OSError:
            assert len(module.losses) == 4
            raise

    with pytest.raises(RankError) as told:
        run_ranks(run, 2)
    assert "OSError: the disk is gone" in str(told.value)
    assert "AssertionError" not in str(told.value)


def test_a_loader_without_length_that_raises_ends_all_ranks_with_its_rank():
    class Failing(Stream):
        def __iter__(self):
            yield from self.items[:3]
            if dist.get_rank() == 1:
                raise OSError("the disk is gone")
            yield from self.items[3:]

    def run():
        try:
            trainer(strategy(True)).fit(Dropped(), DataLoader(Failing(batches(6)), batch_size=None))
        except (OSError, RuntimeError) as error:
            return str(error)

    assert run_ranks(run, 2) == ["the loader of rank 1 raised; its message says why", "the disk is gone"]


def test_a_bad_id_is_told_when_its_batch_is_trained_and_on_all_ranks():
    def run():
        made = batches(6)
        if dist.get_rank() == 1:
            made[4]["ids"].values()[0] = 1000
        module = Dropped()
        with pytest.raises(ValueError, match=r"outside its table|ids must be in") as told:
            trainer(strategy(True)).fit(module, DataLoader(made, batch_size=None))
        return len(module.losses), str(told.value)

    (steps, first), (same, second) = run_ranks(run, 2)
    assert steps == same == 4
    assert "another rank has an id outside its table" in first
    assert "got 1000 on rank 1" in second


class Other(Dropped):
    def training_step(self, batch, batch_idx):
        ids = batch["ids"]
        if batch_idx == 3:
            batch = {**batch, "ids": KeyedJaggedTensor(ids.keys(), ids.values() * 0, lengths=ids.lengths())}
        return super().training_step(batch, batch_idx)


class Changed(Dropped):
    def training_step(self, batch, batch_idx):
        if batch_idx == 3:
            batch["ids"].values().zero_()
        return super().training_step(batch, batch_idx)


class Copied(Dropped):
    def training_step(self, batch, batch_idx):
        ids = batch["ids"]
        if batch_idx > 2:  # the same content
            batch = {**batch, "ids": KeyedJaggedTensor(ids.keys(), ids.values(), lengths=ids.lengths().clone())}
        return super().training_step(batch, batch_idx)


class Made(Dropped):
    def training_step(self, batch, batch_idx):
        ids = batch["ids"]
        made = KeyedJaggedTensor(ids.keys(), ids.values(), lengths=ids.lengths())
        return super().training_step({**batch, "ids": made}, batch_idx)


@pytest.mark.parametrize("kind", [Other, Changed])
def test_other_ids_than_were_sent_are_refused(kind):
    def run():
        with pytest.raises(RuntimeError, match=r"embeddings: look-ahead has sent .*look_ahead=False"):
            fit(True, kind=kind)
        return True

    assert run_ranks(run, 2) == [True, True]


def test_the_same_ids_in_another_object_are_what_was_sent():
    for without, ahead, used in run_ranks(lambda: both(kind=Copied), 2):
        assert without == ahead
        assert used == [0, 0, 1, 1, 1, 1]


def test_ids_that_are_made_in_training_step_are_exchanged_there():
    for without, ahead, used in run_ranks(lambda: both(kind=Made), 2):
        assert without == ahead
        assert used == [0] * 6


class Skipping(Dropped):
    """Every second step looks nothing up, on all ranks."""

    def training_step(self, batch, batch_idx):
        if batch_idx % 2 == 0:
            return super().training_step(batch, batch_idx)
        loss = self.tower(torch.ones(1, 16)).mean()
        self.losses.append(loss.item())
        return loss


class Twice(Dropped):
    def training_step(self, batch, batch_idx):
        both = self(batch["first"]) + self(batch["second"])
        loss = nn.functional.binary_cross_entropy_with_logits(both, batch["first"]["label"])
        self.losses.append(loss.item())
        return loss


class Manual(Dropped):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def test_a_lookup_that_all_ranks_leave_out_is_left_out():
    for without, ahead, used in run_ranks(lambda: both(kind=Skipping), 2):
        assert without == ahead
        assert used == [0, 0, 1, 0, 1, 0]


def test_several_lookups_of_a_step():
    def run():
        def data():
            return DataLoader([{"first": batch, "second": batch} for batch in batches(5)], batch_size=None)

        return both(data, kind=Twice, strategy={"update_in_step": True})

    for without, ahead, used in run_ranks(run, 2):
        assert without == ahead
        assert used == [0, 0, 2, 2, 2]


def test_manual_optimization():
    for without, ahead, used in run_ranks(lambda: both(kind=Manual), 2):
        assert without == ahead
        assert used == [0, 0, 1, 1, 1, 1]


class Hooked(Dropped):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


@pytest.mark.parametrize(
    ("ranks", "settings", "reason"),
    [
        (1, {}, "one process on CPU has nothing"),
        (2, {"kind": Hooked}, "Hooked.on_after_batch_transfer may depend on the step"),
        (2, {"kind": Made}, "looks up no KeyedJaggedTensor of the batch itself"),
        (2, {"data": lambda: [loader(2), loader(2)]}, "several training loaders"),
    ],
)
def test_where_it_is_off_it_says_so(ranks, settings, reason):
    class Several(Dropped):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[0] if isinstance(batch, list) else batch, batch_idx)

    def run():
        warned: list[str] = []
        lookahead.rank_zero_warn = warned.append  # this process is forked
        _, count = fit(True, **{"kind": Several, **settings})
        return count.used, warned

    for used, warned in run_ranks(run, ranks):
        assert not any(used)
        assert len(warned) == 1
        assert reason in warned[0]


def test_nothing_is_read_before_the_epoch_is_set():
    class Noting(KnownPositioned):
        def __init__(self, items):
            super().__init__(items)
            self.said = []
            self.sampler = self

        def set_epoch(self, epoch):
            self.said.append(f"epoch {epoch}")

        def __iter__(self):
            for number, item in enumerate(self.items):
                self.said.append(number)
                yield item

    def run():
        noting = Noting(batches(3))
        fit(True, lambda: noting, max_epochs=2)
        return noting.said

    assert run_ranks(run, 2)[0] == ["epoch 0", 0, 1, 2, "epoch 1", 0, 1, 2]


def test_a_second_fit_begins_anew():
    def run():
        module = Dropped()
        for look_ahead in (True, False, True):
            runner = trainer(strategy(look_ahead), max_steps=4)
            runner.fit(module, loader(6))
        return len(module.losses)

    assert run_ranks(run, 2) == [12, 12]


def test_look_ahead_is_true_false_or_auto():
    with pytest.raises(ValueError, match="look_ahead must be"):
        TorchRecStrategy(look_ahead="yes")
