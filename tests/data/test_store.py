import pickle

import numpy as np
import pytest

from lightning_mvrec.data import Store, SyntheticEvents, prepare


@pytest.fixture
def store(tmp_path):
    return prepare(SyntheticEvents(num_users=20, levels=3), targets=["buy"], store_dir=tmp_path, progress=False)


def test_views_are_mapped_not_read(store):
    items = store.view("click").items
    assert items.dtype == np.int32
    assert not items.flags.owndata
    assert not items.flags.writeable


def test_a_store_crosses_a_process_boundary_as_its_path(store):
    copy = pickle.dumps(store)
    assert len(copy) < 1000
    assert (pickle.loads(copy).view("buy").items == store.view("buy").items).all()


@pytest.mark.parametrize("name", ["views/click/items.npy", "targets/test/asof.npy", "schema.yaml", "item_ids.json"])
@pytest.mark.parametrize("keep", [0, 0.5, None])
def test_a_truncated_store_names_the_file_and_the_way_out(store, name, keep):
    file = store.path / name
    if keep is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    with pytest.raises(ValueError, match=rf"{file.name} is truncated: .*prepare the data again"):
        Store(store.path)


def test_a_store_of_another_format_or_without_manifest_is_refused(store):
    manifest = store.path / "store.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 1', '"format": 99'))
    with pytest.raises(ValueError, match=r"format of .* must be 1, got 99"):
        Store(store.path)
    manifest.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"store.json cannot be read"):
        Store(store.path)
    manifest.unlink()
    with pytest.raises(ValueError, match=r"store.json is missing"):
        Store(store.path)


def test_unknown_names_are_refused(store):
    with pytest.raises(ValueError, match="stage must be train, val or test, got 'dev'"):
        store.targets("dev")
    with pytest.raises(ValueError, match="view must be one of"):
        store.view("wish")
