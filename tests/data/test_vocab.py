import numpy as np
import pytest

from lightning_mvrec.data.vocab import Vocabulary


@pytest.mark.parametrize("ids", [[7, 3, 9], ["a", "c", "b"]])
def test_rows_and_ids_are_each_others_inverse_and_unknown_is_row_0(ids):
    vocabulary = Vocabulary(ids)
    assert len(vocabulary) == 4
    assert [vocabulary.ids[row] for row in vocabulary.rows(ids)] == ids
    other = "zz" if isinstance(ids[0], str) else 100
    assert vocabulary.rows([other]).tolist() == [0]
    assert vocabulary.ids[0] is None


def test_extending_renumbers_nothing():
    old = Vocabulary(["b", "a"])
    new = old.extended(np.array(["c", "a", "c", "d"], dtype=object))
    assert new.ids == [None, "b", "a", "c", "d"]
    assert len(old) == 3


def test_an_empty_vocabulary_knows_nothing():
    assert Vocabulary([]).rows(np.array([1, 2])).tolist() == [0, 0]


def test_an_id_given_twice_is_refused():
    with pytest.raises(ValueError, match="ids must be distinct, got 3 twice"):
        Vocabulary([3, 4, 3])
