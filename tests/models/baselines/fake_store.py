"""A store in memory, with what baselines read."""

from dataclasses import dataclass

import numpy as np

from lightning_mvrec.schema import Field, Schema, View


@dataclass
class FakeView:
    items: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    stage: np.ndarray


@dataclass
class FakeTargets:
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    view: np.ndarray
    asof: np.ndarray


class FakeStore:
    """Built from events ``{view: [(user, item, time), ...]}`` and targets ``{stage: [(user, view, place), ...]}``.

    A target is the ``place``-th event of its user's view; ``labels`` gives an event's label by (view, user, place).
    ``pairs`` are test targets without an event: (user, item), after everything.
    """

    def __init__(
        self,
        events,
        targets,
        num_users,
        num_items,
        labels=None,
        pairs=(),
        genres=None,
        label="implicit",
        has_times=True,
    ):
        names = list(events)
        item_fields = (Field("genres", "multi_hot", 1 + max(max(g, default=0) for g in genres)),) if genres else ()
        self.schema = Schema(
            tuple(View(name) for name in names), num_items, num_users, (names[-1],), item_fields, (), has_times, label
        )
        self.item_fields = {}
        if genres:
            offsets = np.cumsum([0] + [len(g) for g in genres])
            self.item_fields["genres"] = (np.array([value for g in genres for value in g], dtype=np.int64), offsets)
        self._views = {}
        for name, rows in events.items():
            rows = np.array(sorted(rows, key=lambda row: (row[0], row[2])), dtype=np.int64).reshape(-1, 3)
            offsets = np.searchsorted(rows[:, 0], np.arange(num_users + 1))
            stage = np.zeros(len(rows), dtype=np.int8)
            self._views[name] = FakeView(rows[:, 1].astype(np.int32), rows[:, 2], offsets, stage)
        self._targets = {
            stage: self._stage(names, targets.get(stage, ()), labels or {}, pairs if stage == "test" else ())
            for stage in ("train", "val", "test")
        }
        for stage in ("val", "test"):  # an event belongs to the first evaluation target that it does not precede
            for user, asof in zip(self._targets[stage].user, self._targets[stage].asof, strict=True):
                for count, view in zip(asof, self._views.values(), strict=True):
                    view.stage[view.offsets[user] + count : view.offsets[user + 1]] = 1
        self.popularity = np.zeros(num_items, dtype=np.int64)
        for view in self._views.values():
            np.add.at(self.popularity, view.items[view.stage == 0], 1)
        self.popularity[0] = 0

    def _stage(self, names, places, labels, pairs):
        rows = []
        for user, name, place in places:
            view = self._views[name]
            at = view.offsets[user] + place
            asof = [self._before(other, user, view.times[at]) for other in names]
            asof[names.index(name)] = place
            label = labels.get((name, user, place), 1.0)
            rows.append((user, view.items[at], view.times[at], label, names.index(name), asof))
        for user, item in pairs:
            asof = [self._before(name, user, 2**60) for name in names]
            rows.append((user, item, 2**60, 1.0, -1, asof))
        rows.sort(key=lambda row: (row[0], row[2]))
        columns = list(zip(*rows, strict=True)) if rows else [[]] * 6
        user, item, time, label, view, asof = columns
        return FakeTargets(
            np.array(user, dtype=np.int64),
            np.array(item, dtype=np.int32),
            np.array(time, dtype=np.int64),
            np.array(label, dtype=np.float32),
            np.ones(len(rows), dtype=np.float32),
            np.array(view, dtype=np.int64),
            np.array(asof, dtype=np.int64).reshape(-1, len(names)),
        )

    def _before(self, name, user, time):
        view = self._views[name]
        return int((view.times[view.offsets[user] : view.offsets[user + 1]] < time).sum())

    def view(self, name):
        return self._views[name]

    def targets(self, stage):
        return self._targets[stage]
