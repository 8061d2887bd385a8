import pytest
from torchrec import EmbeddingBagConfig

from lightning_mvrec.strategies import SGD, Adagrad
from lightning_mvrec.strategies.footprint import least_load
from lightning_mvrec.strategies.tables import Table
from lightning_mvrec.strategies.unfit import explain


def table(name, rows, optimizer=None):
    config = EmbeddingBagConfig(name=name, num_embeddings=rows, embedding_dim=10, feature_names=[name])
    return Table("t", config, False, optimizer or SGD(lr=0.1))  # 40 bytes a row


def said(tables, kinds, capacity, ranks=2, on_cuda=False, reserved=0):
    return explain(tables, kinds, capacity, ranks, "host memory", on_cuda, reserved)


def test_tables_that_may_be_cut_are_shared_evenly_and_others_lie_whole():
    big, small = table("big", 100), table("small", 10, Adagrad(lr=0.1))
    assert least_load([big, small], {"big": True, "small": False}, 2) == [2000 + 800, 2000]
    assert least_load([big, small], {"big": False, "small": False}, 2) == [4000, 800]


def test_it_tells_what_is_missing_on_which_rank_and_which_sharding_to_loosen():
    message = said([table("big", 100), table("small", 10)], {"big": ["table_wise"], "small": ["table_wise"]}, 3000)
    assert "rank 0: weights and optimizer state need 4 kB, 1 kB are missing" in message
    assert "rank 1" not in message
    assert "let table 'big' be row_wise" in message


def test_where_one_table_is_not_enough_it_names_all():
    tables = [table(name, 100) for name in ("a", "b", "c")]
    message = said(tables, {name: ["table_wise"] for name in "abc"}, 6000)
    assert "2 kB are missing" in message
    assert "let table 'a' be row_wise" in message
    message = said(tables[:2], {name: ["table_wise"] for name in "ab"}, 2700, ranks=3)  # 8000 / 3 = 2667 a rank
    assert "let the tables ['a', 'b'] be row_wise" in message


def test_half_precision_comes_next():
    message = said([table("big", 100)], {"big": ["row_wise"]}, 1500)
    assert "500 B are missing" in message
    assert "keep table 'big' in fp16" in message


def test_on_a_device_host_memory_helps_and_elsewhere_more_ranks():
    big = table("big", 1000)
    assert "TableConstraint(kernel='fused_uvm_caching'" in said([big], {"big": ["row_wise"]}, 1000, on_cuda=True)
    assert "use 40 ranks" in said([big], {"big": ["row_wise"]}, 1000)


def test_what_replicated_tables_take_is_said():
    message = said([table("big", 100)], {"big": ["row_wise"]}, 1000, reserved=1500)
    assert "of which replicated tables take 1.5 kB" in message
    assert "replicate less" in message


def test_room_for_what_is_looked_up_is_said_where_tables_alone_would_fit():
    assert "with room for what is looked up they do not" in said([table("big", 10)], {"big": ["row_wise"]}, 1000)
    with pytest.raises(KeyError):
        said([table("big", 10)], {}, 1000)
