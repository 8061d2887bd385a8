import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_mvrec.data import (
    EventsDataModule,
    FieldLabel,
    LeaveOneOut,
    UniformNegatives,
)
from lightning_mvrec.data.sources import FrameSource
from tests.data.frames import logs, sorted_events

ITEMS = pd.DataFrame(
    {
        "item": range(10, 18),
        "kind": ["a", "b", None, "a", "c", "b", "a", "c"],
        "tags": [[], ["x"], ["x", "y"], ["y"], [], ["z"], ["x", "y", "z"], ["x"]],
    }
)
USERS = pd.DataFrame({"user": range(5), "country": ["n", "n", "m", None, "m"]})


def module(frames, folder, **options):
    data = EventsDataModule(
        FrameSource(frames, items=ITEMS, users=USERS),
        targets=["buy"],
        split=LeaveOneOut(),
        store_dir=str(folder),
        batch_size=3,
        **options,
    )
    data.prepare_data()
    data.setup()
    return data


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(logs(), st.integers(1, 5), st.sampled_from([None, UniformNegatives(4)]))
def test_every_target_reads_its_users_earlier_events(tmp_path, frames, max_len, negatives):
    """Read every target's history back from the batches and compare it with the rows of the frames."""
    data = module(frames, tmp_path, max_len=max_len, negatives=negatives, eval_max_targets=2)
    found = 0
    for stage in ("train", "val", "test"):
        loader = data.loader(stage)
        examples = loader.dataset.examples
        for batch in loader:
            assert (batch.item_row_M[1:] > batch.item_row_M[:-1]).all()
            for b, example in enumerate(batch.example_B.tolist()):
                user = data.store.user_ids[examples.targets.user[examples.first[example]]]
                targets = [
                    (int(batch.time_BK[b, k]), data.store.item_ids[batch.item_row_M[batch.target_BK[b, k]]])
                    for k in np.flatnonzero(batch.weight_BK[b] > 0)
                ]
                found += len(targets)
                for v, name in enumerate(data.schema.view_names):
                    before = [events_before(frames, name, user, target) for target in targets]
                    # The window begins max_len events before the last target.
                    begin = max(len(before[-1]) - max_len, 0)
                    assert [read_back(data, batch, name, v, b, k) for k in range(len(targets))] == [
                        events[begin:] for events in before
                    ]
    assert found == len(frames["buy"])


def events_before(frames, name, user, target):
    """(time, item) of a user's events of one view before a purchase (time, item); both occur once."""
    events = sorted_events(frames, name, user)
    if name != "buy":
        return [(time, item) for time, _, item in events if time < target[0]]
    place = [(time, item) for time, _, item in events].index(target)
    return [(time, item) for time, _, item in events[:place]]


def read_back(data, batch, name, v, b, k):
    """(time, item) of the events of one view that a target's state has seen, as the batch has them."""
    view = batch.views[name]
    start = int(view.lengths_B[:b].sum())
    asof = int(batch.asof_BKV[b, k, v])
    assert asof <= view.lengths_B[b]
    rows = batch.item_row_M[view.position_E[start : start + asof]]
    return [
        (int(time), data.store.item_ids[row]) for time, row in zip(view.time_E[start : start + asof], rows, strict=True)
    ]


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(1)
    frames = {
        name: pd.DataFrame(
            {
                "user": rng.integers(0, 5, 60),
                "item": rng.integers(10, 17, 60),
                "time": rng.integers(0, 90, 60),
                "stars": rng.integers(1, 6, 60).astype(float),
                "device": rng.choice(["phone", "desk"], 60),
            }
        )
        for name in ("click", "buy")
    }
    return module(frames, tmp_path, label=FieldLabel("stars"), max_len=4)


def test_features_of_items_and_users_are_those_of_the_files(data):
    store = data.store
    batch = next(iter(data.train_dataloader()))
    kinds, tags = (batch.items[f"item_{name}"].to_dense() for name in ("kind", "tags"))
    by_item = ITEMS.set_index("item")
    for position, row in enumerate(batch.item_row_M.tolist()):
        raw = by_item.loc[store.item_ids[row]]
        kind = store.field_values["item_kind"][int(kinds[position])]
        assert kind == (raw["kind"] if isinstance(raw["kind"], str) else None)
        assert [store.field_values["item_tags"][value] for value in tags[position].tolist()] == raw["tags"]
    countries = batch.users["user_country"].to_dense()
    for b, row in enumerate(batch.users["user_id"].values().tolist()):
        raw = USERS.set_index("user").loc[store.user_ids[row], "country"]
        assert store.field_values["user_country"][int(countries[b])] == (raw if isinstance(raw, str) else None)


def test_item_features_of_any_rows_include_the_unknown_item(data):
    features = data.collator().item_features(np.array([0, 3]))
    assert features["item_id"].values().tolist() == [0, 3]
    assert features["item_kind"].values().tolist()[0] == 0
    assert features["item_tags"].lengths().tolist()[0] == 0


def test_event_fields_follow_their_events(data):
    store = data.store
    batch = next(iter(data.train_dataloader()))
    for name in data.schema.view_names:
        view, full = batch.views[name], store.view(name)
        assert view.fields["stars"].dtype.is_floating_point
        assert not view.fields["device"].dtype.is_floating_point
        events = zip(
            view.time_E.tolist(),
            batch.item_row_M[view.position_E].tolist(),
            view.fields["stars"].tolist(),
            view.fields["device"].tolist(),
            strict=True,
        )
        known = set(
            zip(
                full.times.tolist(),
                full.items.tolist(),
                full.fields["stars"].tolist(),
                full.fields["device"].tolist(),
                strict=True,
            )
        )
        assert set(events) <= known


def test_labels_are_the_raw_values_of_the_targets(data):
    labels = []
    for stage in ("train", "val", "test"):
        for batch in data.loader(stage):
            labels += batch.label_BK[batch.weight_BK > 0].tolist()
    frame = data.settings.source.views["buy"].drop_duplicates(["user", "item", "time"])
    assert sorted(labels) == sorted(frame["stars"].tolist())


def test_a_large_catalogue_gives_the_same_batch_by_sorting_as_by_marking(data, monkeypatch):
    # More than 64 item rows for each row of the batch: the other way to find the distinct ones.
    collator = data.collator()
    rows = [np.array([3, 1, 3]), np.array([], dtype=np.int64), np.array([7])]
    marked = collator._distinct(rows)
    object.__setattr__(collator.schema, "num_items", 10_000)
    by_sorting = collator._distinct(rows)
    assert marked[0]["item_id"].values().tolist() == by_sorting[0]["item_id"].values().tolist() == [1, 3, 7]
    assert [p.tolist() for p in marked[1]] == [p.tolist() for p in by_sorting[1]] == [[1, 0, 1], [], [2]]


def test_row_0_is_in_a_batch_without_any_item(data):
    examples = data.examples("train")
    batch = data.collator()(examples, np.array([-1, -1]), total_weight=1.0)
    assert batch.item_row_M.tolist() == [0]
    assert batch.target_BK.tolist() == [[0], [0]]
    assert batch.weight_BK.tolist() == [[0.0], [0.0]]
