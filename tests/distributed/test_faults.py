"""When one rank fails, every process ends by itself with a message that names it, and a resumed run is the same run.

Times are short here and the machine may be busy: a hang is declared after `LIMIT` seconds.
"""

import os
import re
import signal
import threading
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_mvrec.strategies import RowWiseAdagrad, TorchRecStrategy
from lightning_mvrec.strategies.checkpoint import read_meta
from lightning_mvrec.strategies.ending import show_stack
from lightning_mvrec.strategies.standing import Observer
from lightning_mvrec.strategies.watch import Limits, Watch
from tests.distributed.launch import end_ranks, run_ranks
from tests.strategies.stranger import InConfigureModel, InInit, batches, loader, trainer

LIMIT = 6.0
BAD_AND_AHEAD = pytest.mark.parametrize(("bad", "ahead"), [(0, False), (1, True)])


class Faulty(InInit):
    """Calls ``fault`` in its fourth step on rank ``bad``."""

    def __init__(self, fault, bad):
        super().__init__()
        self.fault = fault
        self.bad = bad

    def training_step(self, batch, batch_idx):
        if batch_idx == 3 and dist.get_rank() == self.bad:
            self.fault()
        return super().training_step(batch, batch_idx)


def strategy(**arguments):
    return TorchRecStrategy(RowWiseAdagrad(lr=0.1), **{"sharding": "row_wise", "failure_timeout": LIMIT, **arguments})


def faulty_fit(fault, bad, ahead=False, data=loader, **settings):
    trainer(strategy(look_ahead=ahead), **settings).fit(Faulty(fault, bad), data())


def lose_key():
    raise KeyError("lost key")


def get_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def get_stopped():
    os.kill(os.getpid(), signal.SIGSTOP)


def hang():
    time.sleep(1000)


def lines(end, rank):
    """The lines that the watch of a rank has printed."""
    return [line.removeprefix(f"[rank {rank}] ") for line in end.log.splitlines() if line.startswith(f"[rank {rank}] ")]


@BAD_AND_AHEAD
def test_a_rank_that_raises_is_named_by_the_others_with_its_error(bad, ahead):
    ends = end_ranks(faulty_fit, 2, lose_key, bad, ahead)
    assert [end.status for end in ends] == [1, 1]
    for rank, end in enumerate(ends):
        assert lines(end, rank) == [f"rank {bad} failed: KeyError: 'lost key' (epoch 0, batch 3: step)"]
    other = ends[1 - bad].log.strip().splitlines()
    assert other[-1] == f"RuntimeError: rank {bad} failed: KeyError: 'lost key' (epoch 0, batch 3: step)"
    assert not any("gloo" in line for line in other)
    assert "raise KeyError" in ends[bad].log


@BAD_AND_AHEAD
def test_a_killed_rank_is_named_by_the_others(bad, ahead):
    ends = end_ranks(faulty_fit, 2, get_killed, bad, ahead)
    assert ends[bad].status == -signal.SIGKILL
    assert ends[1 - bad].status == 1
    assert lines(ends[1 - bad], 1 - bad)[0].startswith(f"rank {bad} is gone: its process was killed")
    assert "gloo" not in ends[1 - bad].log


def test_a_killed_rank_is_noticed_while_workers_of_its_loader_live_on():
    def data():
        return DataLoader(batches(20), batch_size=None, num_workers=1, multiprocessing_context="fork")

    ends = end_ranks(faulty_fit, 2, get_killed, 1, False, data)
    assert "rank 1 is gone" in ends[0].log
    assert ends[0].seconds - ends[1].seconds < 2 * LIMIT


@pytest.mark.parametrize("bad", [0, 1])
def test_ranks_wait_for_one_that_takes_seconds_to_end_with_its_error(bad):
    """As where a callback has work to do, or the machine is busy: the others end with an exception that names it."""

    class Late(Faulty):
        def late(self):
            if dist.get_rank() == self.bad:
                time.sleep(2.5)

    class Calls(pl.Callback):
        def on_exception(self, trainer, module, exception):
            module.late()

    def run():
        trainer(strategy(), callbacks=[Calls()]).fit(Late(lose_key, bad), loader())

    ends = end_ranks(run, 2)
    assert [end.status for end in ends] == [1, 1]
    for rank, end in enumerate(ends):
        last = end.log.strip().splitlines()[-1]
        assert last.startswith("KeyError" if rank == bad else f"RuntimeError: rank {bad} failed: KeyError"), rank


@pytest.mark.slow
@BAD_AND_AHEAD
def test_a_rank_that_hangs_is_named_with_the_line_it_is_in(monkeypatch, bad, ahead):
    def unhurried(rank):  # as on a busy machine; nobody may kill it meanwhile
        time.sleep(1.6)
        show_stack(rank)

    monkeypatch.setattr("lightning_mvrec.strategies.watch.show_stack", unhurried)
    ends = end_ranks(faulty_fit, 2, hang, bad, ahead)
    assert [end.status for end in ends] == [1, 1]
    for rank, end in enumerate(ends):
        assert re.match(rf"rank {bad} hangs: no progress for \d+ s in epoch 0, batch 3: step", lines(end, rank)[0])
        assert f"{Path(__file__).name}:" in lines(end, rank)[0]
        assert "in hang" in lines(end, rank)[0]
        assert "failure_timeout" in lines(end, rank)[0]
    assert "time.sleep(1000)" in ends[bad].log


@pytest.mark.slow
@BAD_AND_AHEAD
def test_a_stopped_process_is_named_and_killed(bad, ahead):
    ends = end_ranks(faulty_fit, 2, get_stopped, bad, ahead)
    assert ends[bad].status == -signal.SIGKILL
    assert ends[1 - bad].status == 1
    said = lines(ends[1 - bad], 1 - bad)
    assert said[0].startswith(f"rank {bad} has not been heard of for")
    assert said[1] == f"rank {bad} did not end by itself and was killed"


class Skips(InInit):
    """Rank ``bad`` makes steps without a lookup from one on."""

    def __init__(self, first, bad=1):
        super().__init__()
        self.first, self.bad = first, bad

    def training_step(self, batch, batch_idx):
        if batch_idx >= self.first and dist.get_rank() == self.bad:
            return self.tower(torch.zeros(2, 16)).mean()
        return super().training_step(batch, batch_idx)


class NobodyLooks(Skips):
    """No rank makes a lookup from the fourth step on."""

    def training_step(self, batch, batch_idx):
        return self.tower(torch.zeros(2, 16)).mean() if batch_idx > 2 else super().training_step(batch, batch_idx)


def test_a_lookup_that_no_rank_makes_any_more_costs_one_pause(monkeypatch):
    def run():
        took, pause = [], Watch.pause

        def timed(watch):
            start = time.monotonic()
            pause(watch)
            took.append(time.monotonic() - start)

        monkeypatch.setattr(Watch, "pause", timed)
        trainer(strategy()).fit(NobodyLooks(9), loader(9))
        return took

    for (took,) in run_ranks(run, 2):
        assert took < 2 * LIMIT


@pytest.mark.parametrize(("first", "ahead"), [(3, False), (0, True), (3, True)])
def test_a_skipped_lookup_is_named(first, ahead):
    ends = end_ranks(lambda: trainer(strategy(look_ahead=ahead)).fit(Skips(first), loader()), 2)
    for rank, end in enumerate(ends):
        assert end.status == 1
        assert lines(end, rank)[0].startswith("rank 1 skipped the lookup of 'embeddings' that rank 0 waits for")


class Short(DataLoader):
    """A loader that has fewer batches on rank ``bad`` than it says."""

    def __init__(self, bad):
        super().__init__(batches(), batch_size=None)
        self.bad = bad

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number < 3 or dist.get_rank() != self.bad:
                yield batch


class Logs(InInit):
    """Its ranks meet at the end of an epoch."""

    def on_train_epoch_end(self):
        dist.all_reduce(torch.ones(1))


@pytest.mark.parametrize(
    ("module", "epochs", "bad", "ahead"),
    [(InInit, 1, 0, False), (InInit, 1, 1, True), (InInit, 2, 1, False), (Logs, 1, 1, True)],
)
def test_a_loader_that_ends_before_its_length_is_named(module, epochs, bad, ahead):
    def run():
        trainer(strategy(look_ahead=ahead), max_epochs=epochs).fit(module(), Short(bad))

    ends = end_ranks(run, 2)
    for rank, end in enumerate(ends):
        assert end.status == 1
        assert lines(end, rank)[0].startswith(
            f"rank {bad} has no more batches, rank {1 - bad} waits in epoch 0, batch "
        )


class Stops(InInit):
    """Rank 1 alone stops after its third step."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == 2 and dist.get_rank() == 1:
            self.trainer.should_stop = True


def test_a_rank_that_stops_alone_stays_to_be_named():
    for rank, end in enumerate(end_ranks(lambda: trainer(strategy()).fit(Stops(), loader()), 2)):
        assert end.status == 1
        assert lines(end, rank)[0].startswith("rank 1 has no more batches, rank 0 waits in epoch 0, batch ")


class Lingers(InInit):
    """Rank 2 ends its training later than the others."""

    def on_train_end(self):
        if dist.get_rank() == 2:
            time.sleep(2.0)


def test_ranks_that_wait_for_the_last_to_leave_look_no_more_often_than_before(monkeypatch):
    def run():
        looks, look = [], Observer.look
        monkeypatch.setattr(Observer, "look", lambda *args: looks.append(1) or look(*args))
        start = time.monotonic()
        trainer(strategy()).fit(Lingers(), loader(3))
        return len(looks) / (time.monotonic() - start)

    assert max(run_ranks(run, 3)) <= 1 / (0.9 * Limits(LIMIT, LIMIT).interval)


class Keeps(InConfigureModel):
    """Writes its losses down as it goes; calls ``fault`` in step ``when``."""

    def __init__(self, folder, fault=None, bad=1, when=8):
        super().__init__()
        self.folder, self.fault, self.bad, self.when = folder, fault, bad, when

    def training_step(self, batch, batch_idx):
        if self.fault and self.global_step == self.when and dist.get_rank() == self.bad:
            self.fault()
        loss = super().training_step(batch, batch_idx)
        with (Path(self.folder) / f"losses-{dist.get_rank()}").open("a") as file:
            file.write(f"{self.global_step} {loss.item()!r}\n")
        return loss


def kept_fit(folder, fault=None, bad=1, plan=None, **settings):
    """Three epochs of six batches with a checkpoint after every epoch; goes on with the last one if there is one."""
    pl.seed_everything(3, verbose=False)
    keep = ModelCheckpoint(dirpath=folder, save_last=True, save_top_k=1, **settings)
    runner = trainer(strategy(**plan or {}), str(folder), max_epochs=3, enable_checkpointing=True, callbacks=[keep])
    runner.fit(Keeps(folder, fault, bad), loader(), ckpt_path="last")


def losses(folder, rank):
    """The loss of every step, of the last time it was made."""
    rows = (folder / f"losses-{rank}").read_text().splitlines()
    return {int(step): float(loss) for step, loss in (row.split() for row in rows)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run_ranks(kept_fit, 2, folder)
    return [losses(folder, rank) for rank in range(2)]


@pytest.mark.parametrize(("fault", "bad"), [(lose_key, 0), (get_killed, 1)])
def test_a_run_resumed_after_a_fault_has_the_losses_of_one_without(tmp_path, uninterrupted, fault, bad):
    ends = end_ranks(kept_fit, 2, tmp_path, fault, bad)
    assert all(end.status for end in ends)
    assert max(losses(tmp_path, 0)) < 9
    run_ranks(kept_fit, 2, tmp_path)
    assert [losses(tmp_path, rank) for rank in range(2)] == uninterrupted


def get_sigterm():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.2)


def stopped_fit(folder, bad, **plan):
    """A fit of 18 steps in which rank ``bad`` receives SIGTERM in its ninth, after which all take their time."""

    def slow(self, *args):
        if self.global_step > 8:
            time.sleep(0.5)  # so that the news arrives before the end

    InConfigureModel.on_train_batch_end = slow
    kept_fit(folder, get_sigterm, bad, plan, save_on_exception=True, every_n_epochs=10)


def check_that_all_stopped_and_saved(ends, folder, bad):
    stopped = set()
    for rank, end in enumerate(ends):
        assert end.status == 128 + signal.SIGTERM
        said = lines(end, rank)
        assert said[0] == f"rank {bad} received SIGTERM: all ranks stop before their next batch"
        stopped.add(re.fullmatch(rf"stopped before (batch \d+ of epoch \d), since rank {bad} .*", said[1])[1])
    assert len(stopped) == 1
    made = max(losses(folder, 0))
    assert 8 <= made < 17
    assert all(max(losses(folder, rank)) == made for rank in range(len(ends)))
    assert read_meta(folder / "last.ckpt")["checkpoint"]["global_step"] == made + 1


@pytest.mark.parametrize("check_loss", [True, False])
@BAD_AND_AHEAD
def test_sigterm_to_one_rank_stops_all_before_the_same_batch_and_they_save(tmp_path, bad, ahead, check_loss):
    ends = end_ranks(lambda: stopped_fit(tmp_path, bad, look_ahead=ahead, check_loss=check_loss), 2)
    check_that_all_stopped_and_saved(ends, tmp_path, bad)


@pytest.mark.parametrize(("check_loss", "times"), [(True, 2), (False, 6)])
def test_ranks_ask_for_signals_with_what_they_say_of_the_loss(check_loss, times):
    """By an exchange of its own only in the first batch of an epoch and after a validation."""

    def run():
        asked, broadcast = [], dist.broadcast

        class Counted(InInit):
            def on_train_start(self):
                dist.broadcast = lambda *args, **kwargs: asked.append(1) or broadcast(*args, **kwargs)

            def on_train_end(self):
                dist.broadcast = broadcast

        trainer(strategy(check_loss=check_loss), val_check_interval=3).fit(Counted(), loader(6), loader(1))
        return len(asked)

    assert run_ranks(run, 2) == [times, times]


def test_ranks_ask_by_an_exchange_of_its_own_where_one_of_them_is_not_watched(monkeypatch):
    """That one leaves it to Lightning, which asks before every batch."""
    monkeypatch.setattr("lightning_mvrec.strategies.watch.connect", lambda *args, **kwargs: None)

    def run():
        module = InInit()
        trainer(strategy()).fit(module, loader(4))
        return len(module.losses)

    assert run_ranks(run, 2) == [4, 4]


class Slow(InInit):
    """Takes its time in a step, and before the first batch."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds

    def training_step(self, batch, batch_idx):
        if batch_idx == 3 and dist.get_rank() == 1:
            time.sleep(self.seconds)
        return super().training_step(batch, batch_idx)


def slow_start():
    for number, batch in enumerate(batches()):
        if number == 0 and dist.get_rank() == 1:
            time.sleep(7.0)
        yield batch


class Lazy(DataLoader):
    def __iter__(self):
        return slow_start()


def slow_fit(limit, seconds):
    trainer(strategy(failure_timeout=limit)).fit(Slow(seconds), Lazy(batches(), batch_size=None))
    return True


@pytest.mark.slow
def test_a_slow_step_is_survived_by_a_longer_timeout_and_a_slow_first_batch_by_itself():
    assert run_ranks(slow_fit, 2, LIMIT, 0.0) == [True, True]
    assert "rank 1 hangs" in end_ranks(slow_fit, 2, LIMIT, 100.0)[0].log
    assert run_ranks(slow_fit, 2, 60.0, LIMIT + 1.0) == [True, True]


class SetsUp(InInit):
    """Its ranks exchange something all through a set-up of some seconds."""

    def setup(self, stage):
        end = time.monotonic() + 4.0
        goes_on = torch.ones(())
        while goes_on:
            goes_on.fill_(time.monotonic() < end)
            dist.broadcast(goes_on, src=0)


class MeetsNobody(InInit):
    """Rank 0 waits for rank 1 in its set-up, and rank 1 for rank 0 in another group."""

    def setup(self, stage):
        groups = [dist.new_group([0, 1]) for _ in range(2)]
        dist.all_reduce(torch.ones(1), group=groups[dist.get_rank()])


def test_a_set_up_of_many_exchanges_may_take_longer_than_a_step_and_one_whose_ranks_never_meet_may_not():
    def run(module):
        trainer(strategy(failure_timeout=1.5), limit_train_batches=0).fit(module(), loader())
        return True

    assert run_ranks(run, 2, SetsUp) == [True, True]
    for rank, end in enumerate(end_ranks(run, 2, MeetsNobody)):
        assert end.status == 1
        assert re.match(r"rank \d hangs: no progress for \d+ s in set-up", lines(end, rank)[0])


def test_no_thread_and_no_callback_is_left_and_a_second_fit_is_watched():
    def run():
        watched = []

        class Looks(InInit):
            def on_train_start(self):
                watched.append({thread.name for thread in threading.enumerate()})

        def left():
            return [thread.name for thread in threading.enumerate() if thread.name.startswith("mvrec")]

        runner, module = trainer(strategy()), Looks()
        before = len(runner.callbacks)
        runner.fit(module, loader())
        first = left(), len(runner.callbacks) - before
        runner.fit_loop.max_epochs = 2
        runner.fit(module, loader())
        runner.test(module, loader(2), verbose=False)
        return first, left(), ["mvrec-watch" in names for names in watched]

    assert run_ranks(run, 2) == [(([], 0), [], [True, True])] * 2


def test_one_process_is_not_watched():
    def run():
        class Looks(InInit):
            def on_train_start(self):
                assert not any(thread.name.startswith("mvrec") for thread in threading.enumerate())

        trainer(strategy()).fit(Looks(), loader())
        return True

    assert run_ranks(run, 1) == [True]


def test_none_leaves_ranks_unwatched():
    def run():
        trainer(strategy(failure_timeout=None)).fit(InInit(), loader())
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("mvrec")]

    assert run_ranks(run, 2) == [[], []]


@pytest.mark.parametrize("value", [0, -1.0])
def test_a_timeout_of_nothing_is_refused(value):
    with pytest.raises(ValueError, match="failure_timeout must be above 0 seconds"):
        TorchRecStrategy(failure_timeout=value)


def test_a_rank_that_saves_on_an_exception_alone_ends_as_well(tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path, save_on_exception=True)
    ends = end_ranks(lambda: faulty_fit(lose_key, 1, enable_checkpointing=True, callbacks=[keep]), 2)
    assert all(end.status for end in ends)
    assert "rank 1 failed: KeyError" in ends[0].log
