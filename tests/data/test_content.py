import json
import sys

import numpy as np
import pandas as pd
import pytest

from lightning_mvrec.data import EventsDataModule, FullCatalogue, LeaveOneOut, TextVectors, UniformNegatives, prepare
from lightning_mvrec.data.sources import FrameSource

TITLES = ["red lip stick", "red lip gloss", "green nail polish", "red nail polish", None, "green hair dye", "lip balm"]
ITEMS = pd.DataFrame(
    {"item": [16, 11, 12, 13, 14, 15, 10], "title": TITLES, "kinds": [["lip"], ["lip"], ["nail"], [], ["x"], [], []]}
)


def events(last=10):
    rng = np.random.default_rng(0)
    return pd.DataFrame({"user": np.arange(30) % 5, "item": [*rng.integers(10, 17, 29), last], "time": np.arange(30)})


def store_of(folder, content, frame=None, items=ITEMS):
    source = FrameSource({"click": events() if frame is None else frame}, items=items, text=("title",))
    return prepare(source, targets=["click"], split=LeaveOneOut(), content=content, store_dir=folder, progress=False)


def text(**options):
    return TextVectors(["title"], **{"width": 3, "min_items": 1, **options})


def test_vectors_lie_at_the_items_rows_and_row_0_is_0(tmp_path):
    store = store_of(tmp_path, text())
    by_line = text().vectors(ITEMS)
    assert store.content.shape == (len(store.item_ids), 3)
    assert store.content.dtype == np.float32
    assert not store.content[0].any()
    for line, item in enumerate(ITEMS["item"]):
        np.testing.assert_array_equal(store.content[store.item_ids.index(item)], by_line[line])
    assert store.schema.content_dim == 3


def test_two_preparations_give_the_same_bytes(tmp_path):
    one, two = (store_of(tmp_path / name, text()) for name in ("a", "b"))
    assert (one.path / "content.npy").read_bytes() == (two.path / "content.npy").read_bytes()


def test_events_have_no_part_in_the_vectors(tmp_path):
    """Nothing is fitted on what users did: other events, the same vectors."""
    one = store_of(tmp_path, text())
    other = events().assign(item=np.arange(30) % 7 + 10, user=np.arange(30) % 3)
    two = store_of(tmp_path, text(), other)
    assert one.path != two.path
    np.testing.assert_array_equal(one.content, two.content)


def test_items_of_similar_words_lie_closer_and_every_known_length_is_1():
    vector_MW = text().vectors(ITEMS)
    cosine_MM = vector_MW @ vector_MW.T
    assert cosine_MM[0, 1] > cosine_MM[0, 2] + 0.3  # lip stick and gloss, nail polish
    assert cosine_MM[2, 3] > cosine_MM[3, 1]
    known = [title is not None for title in TITLES]
    np.testing.assert_allclose(np.linalg.norm(vector_MW, axis=1), np.where(known, 1, 0), rtol=1e-5)


def test_lists_of_names_are_read_as_text():
    joined = ITEMS.assign(kinds=[" ".join(names) for names in ITEMS["kinds"]])
    lists, texts = (TextVectors(["title", "kinds"], 3, min_items=1).vectors(frame) for frame in (ITEMS, joined))
    np.testing.assert_array_equal(lists, texts)
    assert not np.array_equal(lists, text().vectors(ITEMS))


def test_fewer_words_than_the_width_leave_columns_of_0():
    few = pd.DataFrame({"item": [1, 2, 3], "title": ["red", "green", "red green"]})
    vector_MW = text(width=8, pairs=False).vectors(few)
    assert vector_MW.shape == (3, 8)
    assert vector_MW[:, :2].any()
    assert not vector_MW[:, 2:].any()
    one = text(width=8).vectors(pd.DataFrame({"item": [1, 2], "title": ["red", None]}))
    np.testing.assert_allclose(one, [[1] + [0] * 7, [0] * 8], rtol=1e-6)


def test_the_store_follows_the_settings_of_the_vectors(tmp_path):
    contents = [None, text(), text(width=2), text(seed=1), text(pairs=False), TextVectors(["kinds"], 3, min_items=1)]
    assert len({store_of(tmp_path, content).path for content in contents}) == len(contents)


def test_batches_carry_the_vectors_of_their_items(tmp_path):
    for negatives in (None, UniformNegatives(2), FullCatalogue()):
        data = EventsDataModule(
            FrameSource({"click": events()}, items=ITEMS, text=("title",)),
            targets=["click"],
            split=LeaveOneOut(),
            content=text(),
            store_dir=str(tmp_path),
            negatives=negatives,
            batch_size=2,
        )
        data.prepare_data()
        data.setup()
        for batch in data.loader("train"):
            np.testing.assert_array_equal(batch.content_MW.numpy(), data.store.content[batch.item_row_M.numpy()])
            assert batch.to("cpu").content_MW is not None
    items, content_MW = data.collator().item_inputs(np.array([0, 5]))
    assert items["item_id"].values().tolist() == [0, 5]
    np.testing.assert_array_equal(content_MW.numpy(), data.store.content[[0, 5]])


def test_data_without_content_has_none(tmp_path):
    store = store_of(tmp_path, None)
    assert store.content is None
    assert not (store.path / "content.npy").exists()
    assert "content.npy" not in json.loads((store.path / "store.json").read_text())["files"]


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(ModuleNotFoundError, match="extra 'text': pip install 'scikit-learn"):
        text().vectors(ITEMS)


def test_faults_are_named(tmp_path):
    with pytest.raises(ValueError, match="width must be above 0, got 0"):
        text(width=0)
    with pytest.raises(ValueError, match="columns must name at least one"):
        TextVectors([])
    with pytest.raises(ValueError, match=r"columns must be columns of the item file .*, got \['name'\]"):
        TextVectors(["name"]).vectors(ITEMS)
    with pytest.raises(ValueError, match="must hold words that at least 1 items have"):
        text().vectors(pd.DataFrame({"item": [1], "title": [None]}))
    with pytest.raises(ValueError, match="content needs an item file"):
        prepare(
            FrameSource({"click": events()}), targets=["click"], split=LeaveOneOut(), content=text(), store_dir=tmp_path
        )
