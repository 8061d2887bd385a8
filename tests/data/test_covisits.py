"""Links of co-visitation against loops over all pairs of events."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_mvrec.data import CoVisits, EventsDataModule, LeaveOneOut
from lightning_mvrec.data.covisits import near_pairs
from lightning_mvrec.data.sources import FrameSource
from lightning_mvrec.data.train_pairs import met_in
from tests.data.frames import logs

VIEWS = ("click", "buy")
RELAXED = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def module(frames, folder, covisits, **options):
    data = EventsDataModule(
        FrameSource(frames),
        targets=["buy"],
        split=LeaveOneOut(),
        store_dir=str(folder),
        batch_size=3,
        covisits=covisits,
        **options,
    )
    data.prepare_data()
    data.setup()
    return data


def trained(store, without=None):
    """(user, item, view, time) of all events that training may learn from."""
    events = []
    for number, name in enumerate(VIEWS):
        view = store.view(name)
        for user in range(len(view.offsets) - 1):
            for at in range(view.offsets[user], view.offsets[user + 1]):
                if view.stage[at] == 0 and view.items[at] > 0 and user != without:
                    events.append((user, int(view.items[at]), number, int(view.times[at])))
    return events


def naive_links(events, window):
    """(item, neighbour, user, first times of the item by view, of the neighbour by view), from the definition."""
    links = []
    for user in {event[0] for event in events}:
        mine = [event for event in events if event[0] == user]
        items = {item for _, item, _, _ in mine}
        first = {
            (item, view): min((t for _, i, v, t in mine if (i, v) == (item, view)), default=np.inf)
            for item in items
            for view in range(2)
        }
        times = {item: [t for _, i, _, t in mine if i == item] for item in items}
        for one in items:
            for other in items - {one}:
                if min(abs(a - b) for a in times[one] for b in times[other]) <= window:
                    ends = [[first[item, view] for view in range(2)] for item in (one, other)]
                    base = min(*ends[0], *ends[1])
                    links.append((one, other, user, *(tuple(t - base for t in end) for end in ends)))
    return sorted(links)


def links_of(graph):
    item = np.repeat(np.arange(len(graph.offsets) - 1), np.diff(graph.offsets))
    rows = zip(item, graph.item, graph.user, graph.source, graph.view, strict=True)
    return sorted((int(i), int(j), int(u), tuple(a.tolist()), tuple(b.tolist())) for i, j, u, a, b in rows)


@RELAXED
@given(logs(), st.integers(1, 4))
def test_links_are_pairs_of_training_events_within_the_window(tmp_path, frames, window):
    store = module(frames, tmp_path, None).store
    assert links_of(CoVisits(window, max_links=1000).graph(store)) == naive_links(trained(store), window)


@RELAXED
@given(logs(), st.booleans(), st.booleans())
def test_a_batch_has_the_links_of_a_graph_made_without_its_user(tmp_path, frames, new_only, whole):
    data = module(frames, tmp_path, CoVisits(3, 1000, new_only, whole), train_pairs=["buy"])
    for stage in ("train", "val", "test"):
        loader = data.loader(stage)
        examples = loader.dataset.examples
        for batch in loader:
            links, steps = batch.links, batch.target_BK.shape[1]
            for b, example in enumerate(batch.example_B.tolist()):
                for k in range(int(examples.count[example])):
                    number = int(examples.first[example]) + k
                    expected = naive_votes(data.store, examples.targets, number, new_only, whole, stage == "train")
                    mine = (links.target_L == b * steps + k).numpy()
                    found = zip(
                        links.event_L[mine].tolist(),
                        links.place_L[mine].tolist(),
                        batch.item_row_M[links.position_L[mine]].tolist(),
                        map(tuple, links.source_LV[mine].tolist()),
                        map(tuple, links.neighbour_LV[mine].tolist()),
                        strict=True,
                    )
                    assert sorted(found) == expected


def naive_votes(store, targets, number, new_only, whole, training):
    user, target = int(targets.user[number]), int(targets.item[number])
    links = naive_links(trained(store, without=user), 3)
    votes, history = [], []
    for view, name in enumerate(VIEWS):
        events = store.view(name)
        first, last = events.offsets[user], events.offsets[user] + targets.asof[number, view]
        if whole and training:
            last = first + min(np.append(np.flatnonzero(events.stage[first : events.offsets[user + 1]] > 0), 10**6))
            last = min(last, events.offsets[user + 1])
        items = events.items[first:last].tolist()
        read = [(len(items) - 1 - at, item) for at, item in enumerate(items) if not (whole and item == target > 0)]
        history += [(view, *each) for each in read]
    met = {item for _, _, item in history}
    for view, place, item in history:
        for one, other, _, source, neighbour in links:
            if one == item and not (new_only and other in met):
                votes.append((view, place, other, source, neighbour))
    return sorted(votes)


def test_the_nearest_links_of_an_item_are_kept(tmp_path):
    clicks = pd.DataFrame({"user": [0, 0, 0], "item": [10, 11, 12], "time": [0, 5, 7]})
    buys = pd.DataFrame({"user": [1], "item": [10], "time": [0]})
    data = module({"click": clicks, "buy": buys}, tmp_path, None)
    links = links_of(CoVisits(10, max_links=1).graph(data.store))
    assert [(one, other) for one, other, *_ in links] == [(1, 2), (2, 3), (3, 2)]


def test_near_pairs_stay_within_an_owner_and_reach_the_bound():
    earlier, later = near_pairs(np.array([0, 0, 0, 1]), np.array([0, 2, 5, 5]), 3)
    assert sorted(zip(earlier.tolist(), later.tolist(), strict=True)) == [(0, 1), (1, 2)]


def test_only_pairs_met_in_the_views_train(tmp_path):
    clicks = pd.DataFrame({"user": [0, 0, 0], "item": [10, 11, 12], "time": [0, 5, 7]})
    buys = pd.DataFrame({"user": [0, 0, 1], "item": [11, 13, 10], "time": [6, 8, 0]})
    options = {"targets": ["click"], "split": LeaveOneOut(), "store_dir": str(tmp_path), "train_pairs": ["buy"]}
    data = EventsDataModule(FrameSource({"click": clicks, "buy": buys}), **options)
    data.prepare_data()
    data.setup()
    train = data.store.targets("train")
    assert met_in(data.store, train, ["buy", "click"]).all()
    kept = data.examples("train").targets
    assert len(kept) == met_in(data.store, train, ["buy"]).sum() < len(train)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window must be above 0 seconds, got 0"),
        ({"max_links": 0}, "max_links must be above 0, got 0"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CoVisits(**options)


def test_links_need_times(tmp_path):
    frame = pd.DataFrame({"user": [0, 0, 0, 0], "item": [10, 11, 12, 13]})
    with pytest.raises(ValueError, match="covisits needs events with times"):
        module({"buy": frame}, tmp_path, CoVisits())
