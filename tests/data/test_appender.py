"""Arrays that grow on disk are those that numpy would have written at once."""

import numpy as np
import pytest

from lightning_mvrec.data.appender import ArrayAppender, ArrayFile


@pytest.mark.parametrize(("dtype", "tail"), [(np.int32, ()), (np.float32, ()), (np.int64, (3,))])
@pytest.mark.parametrize("pieces", [[], [0], [1], [5, 0, 70_000, 2]])
def test_the_file_is_that_of_np_save(tmp_path, dtype, tail, pieces):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 99, (rows, *tail)).astype(dtype) for rows in pieces]
    with ArrayAppender(tmp_path / "grown.npy", dtype, tail) as file:
        for part in parts:
            file.append(part)
    np.save(tmp_path / "saved.npy", np.concatenate([np.zeros((0, *tail), dtype), *parts]))
    assert (tmp_path / "grown.npy").read_bytes() == (tmp_path / "saved.npy").read_bytes()


def test_a_file_whose_writing_failed_is_no_array(tmp_path):
    def fail(file):
        file.append(np.arange(3))
        raise KeyError

    with pytest.raises(KeyError), ArrayAppender(tmp_path / "a.npy", np.int32) as file:
        fail(file)
    with pytest.raises(ValueError, match=r"magic|pickled"):
        np.load(tmp_path / "a.npy")


def test_rows_of_another_shape_are_refused(tmp_path):
    file = ArrayAppender(tmp_path / "a.npy", np.int32, (2,))
    with pytest.raises(ValueError, match=r"rows of a.npy must have shape \(2,\), got \(3,\)"):
        file.append(np.zeros((1, 3)))
    file.close()


def test_ranges_are_read_and_overwritten_in_place(tmp_path):
    expected = np.arange(24, dtype=np.int64).reshape(8, 3)
    np.save(tmp_path / "a.npy", expected)
    file = ArrayFile(tmp_path / "a.npy")
    assert len(file) == 8
    np.testing.assert_array_equal(file.read(2, 5), expected[2:5])
    assert file.read(4, 4).shape == (0, 3)
    file.write(6, -expected[:2])
    expected[6:] = -expected[:2]
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), expected)
