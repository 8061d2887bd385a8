"""A time's place among all is found without sorting them."""

import numpy as np
import pytest

from lightning_mvrec.data.stream import times as module
from lightning_mvrec.data.stream.times import TimesOnDisk


@pytest.mark.parametrize("span", [1, 7, 1000, 10**12])
def test_places_are_those_of_the_sorted_times(tmp_path, monkeypatch, span):
    monkeypatch.setattr(module, "_ROWS", 37)
    monkeypatch.setattr(module, "_BINS", 8)
    time = np.random.default_rng(0).integers(-span, span, 500)
    np.save(tmp_path / "t.npy", time)
    found = TimesOnDisk(tmp_path / "t.npy")
    assert [found[place] for place in range(0, 500, 13)] == np.sort(time)[::13].tolist()
    with pytest.raises(IndexError, match=r"place must be in \[0, 500\), got 500"):
        found[500]
