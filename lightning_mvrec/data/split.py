"""Which events train, which validate, which test.

n candidate targets, N events of one view, U users, V views. Stages are 0 train, 1 val, 2 test; -1 is "no target".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lightning_mvrec.data.histories import History, count_asof, run_starts

STAGES = ("train", "val", "test")


class Times(Protocol):
    """Times of all candidates, ascending, looked up by place; they need not be in memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: int, /) -> Any: ...


@dataclass
class Candidates:
    """The events that may become targets, sorted by (user, time, view, index).

    Args:
        user, item, time: ``(n,)``.
        view: ``(n,)`` index of the view.
        index: ``(n,)`` number of the event within the user's history of that view.
        asof: ``(n, V)`` events of each view before it.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    view: np.ndarray
    index: np.ndarray
    asof: np.ndarray

    @property
    def place(self) -> tuple[np.ndarray, np.ndarray]:
        """Number of each candidate within its user, and how many the user has: ``(n,)`` each."""
        first = run_starts(self.user)
        count = np.diff(np.append(first, len(self.user)))
        return np.arange(len(self.user)) - np.repeat(first, count), np.repeat(count, count)


def gather_candidates(histories: list[History], eligible: dict[int, np.ndarray]) -> Candidates:
    """Collect the eligible events of the target views.

    Args:
        histories: One per view.
        eligible: By index of a target view, ``(N,)`` bool.
    """
    parts = []
    for view, mask in eligible.items():
        history = histories[view]
        columns = [history.user, history.item, history.time, history.index]
        if not mask.all():
            keep = np.flatnonzero(mask)
            columns = [column[keep] for column in columns]
        parts.append([*columns[:3], np.full(len(columns[0]), view, dtype=np.int64), columns[3]])
    columns = [column[0] if len(column) == 1 else np.concatenate(column) for column in zip(*parts, strict=True)]
    user, item, time, number, index = columns
    if len(parts) > 1:  # one view is in this order already
        order = np.lexsort((index, number, time, user))
        user, item, time, number, index = (column[order] for column in columns)
    return Candidates(user, item, time, number, index, count_asof(histories, user, time, number, index))


@dataclass
class Assignment:
    """What a split decided.

    Args:
        target: ``(n,)`` stage of each candidate, -1 for none.
        events: ``(N,)`` per view: the stage to which an event belongs. Stage 0 is what may be learned from in
            training, stages 0 and 1 are what is known before the tests begin.
        catalogue: ``(N,)`` bool per view: the events whose items can be ranked.
        note: One sentence for the summary, with what is not clean about the split.
    """

    target: np.ndarray
    events: list[np.ndarray]
    catalogue: list[np.ndarray]
    note: str


class Split:
    """Assigns candidate targets and events to train, val and test.

    Attributes:
        needs_times: Whether a source without real times is refused.
        needs_pairs: Whether the source must give held-out pairs.
        clean_in_time: Whether nothing is learned from what happens after the first evaluation target of any user.
        by_user: Whether ``assign`` decides about a user by that user's events alone, so that it may be given some
            whole users at a time: data larger than memory are split so.
    """

    needs_times: bool = False
    needs_pairs: bool = False
    clean_in_time: bool = False
    by_user: bool = False

    def for_chunks(self, times: Times) -> Split:
        """Return a split that decides the same, a few users at a time.

        Args:
            times: The times of all candidates, ascending.

        Raises:
            ValueError: If the split needs all users at once.
        """
        if not self.by_user:
            raise ValueError(
                f"split {type(self).__name__} decides about all targets at once, so it cannot be made by an engine "
                "from data larger than memory: use GlobalTimeSplit, PerUserTimeSplit, LeaveOneOut or GivenPairs"
            )
        return self

    def assign(self, histories: list[History], candidates: Candidates) -> Assignment:
        """Return the stage of every candidate and of every event."""
        raise TypeError(f"{type(self).__name__} must define assign(histories, candidates)")


def _check_shares(val: float, test: float) -> None:
    for name, value in (("val", val), ("test", test)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be a share in [0, 1), got {value}")
    if val + test >= 1:
        raise ValueError(f"val + test must be below 1, got {val} + {test}")


class GlobalTimeSplit(Split):
    """Train before one moment, validate up to a second, test after it: nothing is learned from the future.

    The moments are quantiles of the candidates' times; all events of one second fall on the same side.

    Args:
        val: Share of the targets that validate.
        test: Share of the targets that test.

    Raises:
        ValueError: If the shares are outside [0, 1) or leave nothing to train on.
    """

    needs_times = True
    clean_in_time = True

    def __init__(self, val: float = 0.1, test: float = 0.1) -> None:
        _check_shares(val, test)
        self.val = val
        self.test = test

    def assign(self, histories: list[History], candidates: Candidates) -> Assignment:
        """Cut every view at the same two moments."""
        return self.for_chunks(np.sort(candidates.time)).assign(histories, candidates)

    def for_chunks(self, times: Times) -> Split:
        """Find the two moments."""
        count = len(times)

        def moment(share_before: float) -> int:
            place = round(share_before * count)
            return int(times[place]) if place < count else int(times[count - 1]) + 1 if count else 0

        return _CutAt(moment(1 - self.test - self.val), moment(1 - self.test))


class _CutAt(Split):
    """Cuts every view at the same two moments."""

    by_user = True

    def __init__(self, val_from: int, test_from: int) -> None:
        self.val_from = val_from
        self.test_from = test_from

    def assign(self, histories: list[History], candidates: Candidates) -> Assignment:
        cut = [_stage_of(history.time, self.val_from, self.test_from) for history in histories]
        return Assignment(
            target=_stage_of(candidates.time, self.val_from, self.test_from).astype(np.int64),
            events=cut,
            catalogue=[stage == 0 for stage in cut],
            note=f"global time: validation from {self.val_from}, test from {self.test_from} (seconds)",
        )


def _stage_of(time: np.ndarray, val_from: int, test_from: int) -> np.ndarray:
    return (time >= val_from).astype(np.int8) + (time >= test_from).astype(np.int8)


class PerUserTimeSplit(Split):
    """The last targets of every user test, those before validate; other users' future is seen in training.

    Args:
        val: Share of each user's targets that validate, rounded down.
        test: Share of each user's targets that test, rounded down.
    """

    needs_times = True
    by_user = True

    def __init__(self, val: float = 0.1, test: float = 0.1) -> None:
        _check_shares(val, test)
        self.val = val
        self.test = test

    def assign(self, histories: list[History], candidates: Candidates) -> Assignment:
        """Cut every user at moments of their own."""
        place, count = candidates.place
        test_from = count - np.floor(count * self.test + 1e-9)
        val_from = test_from - np.floor(count * self.val + 1e-9)
        target = (place >= val_from).astype(np.int64) + (place >= test_from)
        return _cut_by_user(
            histories,
            candidates,
            target,
            "per-user time: each user's last targets test; training looks into the future of other users",
        )


class LeaveOneOut(Split):
    """Each user's last target tests and the one before validates.

    Args:
        min_targets: Users with fewer targets only train. With 1, a user's only target tests.

    Raises:
        ValueError: If ``min_targets`` is below 1.
    """

    by_user = True

    def __init__(self, min_targets: int = 3) -> None:
        if min_targets < 1:
            raise ValueError(f"min_targets must be at least 1, got {min_targets}")
        self.min_targets = min_targets

    def assign(self, histories: list[History], candidates: Candidates) -> Assignment:
        """Take the last two targets of every user."""
        place, count = candidates.place
        target = np.clip(place - (count - 3), 0, 2)
        target[count < self.min_targets] = 0
        return _cut_by_user(
            histories,
            candidates,
            target,
            "leave-one-out: each user's last target tests, the one before validates; "
            "training looks into the future of other users",
        )


class GivenPairs(Split):
    """The source's held-out pairs test, after everything in the events; each user's last target validates."""

    needs_pairs = True
    by_user = True

    def assign(self, histories: list[History], candidates: Candidates) -> Assignment:
        """Take the last target of every user for validation; test targets are the source's pairs."""
        place, count = candidates.place
        target = (place == count - 1).astype(np.int64)
        result = _cut_by_user(
            histories,
            candidates,
            target,
            "given pairs: the source's held-out pairs test, after each user's last event; each user's last target "
            "validates; training looks into the future of other users",
        )
        # Every event precedes the tests, so every item of an event can be ranked.
        result.catalogue = [np.ones(len(history.user), dtype=bool) for history in histories]
        return result


class RandomSplit(Split):
    """Targets drawn at random, as much of the literature does. It LEAKS: training sees what happened after the tests.

    Args:
        val: Share of the targets that validate.
        test: Share of the targets that test.
        seed: Seed of the draw.
    """

    def __init__(self, val: float = 0.1, test: float = 0.2, seed: int = 0) -> None:
        _check_shares(val, test)
        self.val = val
        self.test = test
        self.seed = seed

    def assign(self, histories: list[History], candidates: Candidates) -> Assignment:
        """Draw the stages."""
        count = len(candidates.user)
        test = round(count * self.test)
        val = round(count * self.val)
        order = np.random.default_rng(self.seed).permutation(count)
        target = np.zeros(count, dtype=np.int64)
        target[order[:test]] = 2
        target[order[test : test + val]] = 1
        return _cut_at_random(histories, candidates, target, "random: LEAKS, training sees events after the tests")


class KFold(Split):
    """One of ``folds`` random parts of the targets tests. It LEAKS as :class:`RandomSplit` does.

    Args:
        folds: Number of parts, at least 2.
        fold: Which part tests, in ``[0, folds)``.
        val: Share of the other targets that validate.
        seed: Seed of the draw; the same for all folds.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(self, folds: int = 5, fold: int = 0, val: float = 0.1, seed: int = 0) -> None:
        if folds < 2:
            raise ValueError(f"folds must be at least 2, got {folds}")
        if not 0 <= fold < folds:
            raise ValueError(f"fold must be in [0, {folds}), got {fold}")
        _check_shares(val, 0.0)
        self.folds = folds
        self.fold = fold
        self.val = val
        self.seed = seed

    def assign(self, histories: list[History], candidates: Candidates) -> Assignment:
        """Draw the parts, then the validation targets from the other parts."""
        count = len(candidates.user)
        rng = np.random.default_rng(self.seed)
        part = rng.permutation(np.arange(count) % self.folds)
        target = np.where(part == self.fold, 2, 0)
        rest = rng.permutation(np.flatnonzero(target == 0))
        target[rest[: round(len(rest) * self.val)]] = 1
        note = f"fold {self.fold} of {self.folds}, random: LEAKS, training sees events after the tests"
        return _cut_at_random(histories, candidates, target, note)


def _cut_by_user(histories: list[History], candidates: Candidates, target: np.ndarray, note: str) -> Assignment:
    """Give each event the stage of the first evaluation target of its user that it does not precede."""
    num_users = len(histories[0].offsets) - 1
    never = np.iinfo(np.int64).max
    first_UV = {}
    for stage in (1, 2):
        first = np.full((num_users, len(histories)), never)
        chosen = target >= stage
        np.minimum.at(first, candidates.user[chosen], candidates.asof[chosen])
        first_UV[stage] = first
    events = []
    for number, history in enumerate(histories):
        index = history.index
        events.append(
            (index >= first_UV[1][history.user, number]).astype(np.int8)
            + (index >= first_UV[2][history.user, number]).astype(np.int8)
        )
    _mark_targets(events, histories, candidates, target)
    return Assignment(target, events, [stage == 0 for stage in events], note)


def _mark_targets(
    events: list[np.ndarray], histories: list[History], candidates: Candidates, target: np.ndarray
) -> None:
    """Give the event of every target the target's own stage (they may differ between views at one moment)."""
    for number, history in enumerate(histories):
        own = (candidates.view == number) & (target >= 0)
        events[number][history.offsets[candidates.user[own]] + candidates.index[own]] = target[own]


def _cut_at_random(histories: list[History], candidates: Candidates, target: np.ndarray, note: str) -> Assignment:
    """Give each target event its own stage; all other events train."""
    events = [np.zeros(len(history.user), dtype=np.int8) for history in histories]
    _mark_targets(events, histories, candidates, target)
    return Assignment(target, events, [stage == 0 for stage in events], note)
