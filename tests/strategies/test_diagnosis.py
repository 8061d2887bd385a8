"""Who is at fault, from where every rank stands."""

from dataclasses import replace

import pytest

from lightning_mvrec.strategies.diagnosis import diagnose
from lightning_mvrec.strategies.standing import (
    AFTER_STEP,
    AT_END,
    IN_BACKWARD,
    IN_STEP,
    SERVING,
    WAITING_FOR_BATCH,
    Beat,
    Observer,
    Standing,
)

HERE = Standing(rank=0, loop=1, batch=4, phase=IN_STEP, still=61.0, long=False, sequence=10, lookups={"items": 4})


def found(*standings, limit=60.0):
    return diagnose(standings, limit=limit, long_limit=1800.0, sure_after=3.0)


def test_the_rank_with_fewer_collectives_hangs_and_those_that_wait_do_not():
    waiting = replace(HERE, waits=True)
    stuck = replace(HERE, rank=1, sequence=9, where="train.py:7", still=60.5)
    fault = found(waiting, stuck, replace(waiting, rank=2))
    assert fault.rank == 1
    assert fault.stuck
    assert "no progress for 60 s in train.py:7" in str(fault)
    assert "failure_timeout" in str(fault)


def test_nobody_hangs_before_the_limit():
    assert found(HERE, replace(HERE, rank=1, still=59.0, sequence=9)) is None
    assert found(HERE, replace(HERE, rank=1, sequence=9), limit=100.0) is None


@pytest.mark.parametrize("still", [5.0, 1000.0])
def test_ranks_that_wait_for_one_in_a_long_phase_do_not_hang(still):
    saving = replace(HERE, rank=1, long=True, sequence=9, still=still)
    assert found(replace(HERE, still=1000.0, waits=True), saving) is None


def test_a_long_phase_has_the_long_limit():
    fault = found(HERE, replace(HERE, rank=1, long=True, sequence=9, still=1801.0))
    assert fault.rank == 1
    assert "TorchRecStrategy(timeout=...)" in str(fault)


def test_ranks_that_all_wait_for_each_other_do_nothing_that_may_take_long():
    waiting = replace(HERE, waits=True, waited=60.0, long=True)
    assert "failure_timeout" in str(found(waiting, replace(waiting, rank=1)))
    assert found(waiting, replace(waiting, rank=1, waits=False, waited=0.0)) is None


def test_ranks_that_are_seen_in_one_exchange_after_the_other_do_not_wait_for_each_other():
    exchanging = replace(HERE, waits=True, waited=59.0, long=True, still=1000.0)
    assert found(exchanging, replace(exchanging, rank=1)) is None
    assert found(exchanging, replace(exchanging, rank=1, waited=61.0)) is None


def test_a_rank_without_batches_and_a_step_that_meets_it_otherwise_are_both_named():
    fault = found(
        replace(HERE, phase=SERVING, waits=True), replace(HERE, rank=1, sequence=11, waits=True, where="a.py:7")
    )
    assert str(fault).startswith("rank 0 has no more batches of this evaluation, and rank 1 waits in a.py:7.")


def test_a_rank_that_stands_still_while_another_goes_on_without_it_hangs():
    assert found(replace(HERE, sequence=20, still=0.0), replace(HERE, rank=1)).rank == 1


def test_among_equals_the_one_that_works_hangs_not_the_one_that_waits():
    assert found(replace(HERE, waits=True), replace(HERE, rank=1)).rank == 1
    assert found(HERE, replace(HERE, rank=1, waits=True)).rank == 0


def test_all_that_stand_still_alike_are_named():
    fault = found(HERE, replace(HERE, rank=1, where="other.py:3"))
    assert "rank 0 is in set-up" in str(fault)


@pytest.mark.parametrize("phase", [IN_BACKWARD, AFTER_STEP])
def test_a_rank_that_is_past_a_lookup_has_skipped_it(phase):
    other = replace(HERE, rank=1, phase=phase, still=4.0, lookups={"items": 3})
    fault = found(replace(HERE, still=4.0), other)
    assert fault.rank == 1
    assert "skipped the lookup of 'items' that rank 0 waits for" in str(fault)


def test_a_rank_that_may_still_make_the_lookup_has_not_skipped_it():
    behind = replace(HERE, rank=1, batch=3, phase=AFTER_STEP, lookups={"items": 3}, still=4.0)
    assert found(replace(HERE, still=4.0), behind) is None
    assert found(replace(HERE, still=4.0), replace(behind, batch=4, phase=IN_STEP)) is None
    assert found(replace(HERE, still=4.0), replace(behind, batch=4, phase=IN_BACKWARD, still=1.0)) is None


def test_a_straggler_that_has_made_all_lookups_is_waited_for():
    ahead = replace(HERE, rank=1, loop=2, batch=0, phase=WAITING_FOR_BATCH, sequence=11, still=10.0)
    assert found(replace(HERE, still=10.0), ahead) is None


@pytest.mark.parametrize("change", [{"loop": 2}, {"phase": AT_END}, {"left": True, "still": 0.0}])
def test_a_rank_without_more_batches_is_named(change):
    other = replace(HERE, rank=1, batch=3, lookups={"items": 3}, **{"still": 4.0, **change})
    fault = found(replace(HERE, still=4.0), other)
    assert str(fault).startswith("rank 1 has no more batches, rank 0 waits in")


def test_tables_looked_up_in_different_order_are_named():
    first = replace(HERE, still=4.0, lookups={"items": 4, "users": 3})
    second = replace(HERE, rank=1, still=4.0, lookups={"items": 3, "users": 4})
    assert "in different order" in str(found(first, second))


def test_a_rank_stands_still_only_as_long_as_it_leaves_no_mark():
    beat = Beat()
    observer = Observer(0, beat, lambda: 0, dict)
    assert [observer.look(1.0).still for _ in range(3)] == [0.0, 1.0, 2.0]
    beat.step()
    assert observer.look(1.0).still == 0.0


def test_first_steps_may_take_long_and_later_ones_may_not():
    beat = Beat()
    beat.begin("epoch 0", training=True)
    seen = [beat.long]
    for mark in (beat.step, beat.backward, beat.stepped, beat.step):
        mark()
        seen.append(beat.long)
    assert seen == [True, True, True, False, False]
    beat.end()
    assert beat.long
    beat.begin("validation", training=False)
    beat.step()
    assert beat.long
    beat.begin("epoch 0", training=True, first=7)
    beat.step()
    assert not beat.long
    assert beat.describe() == "epoch 0, batch 7: step"
