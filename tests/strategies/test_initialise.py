from functools import partial

import pytest
import torch
from torch.nn import init
from torchrec import EmbeddingBagConfig

from lightning_mvrec.strategies import initialise
from lightning_mvrec.strategies.initialise import draw_table
from lightning_mvrec.strategies.tables import Shard, write_block


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(initialise, "BLOCK_ROWS", 4)


def table(rows=10, dim=3, **kwargs):
    return EmbeddingBagConfig(num_embeddings=rows, embedding_dim=dim, name="t", feature_names=["f"], **kwargs)


def drawn(config, seed=1):
    weight = torch.zeros(config.num_embeddings, config.embedding_dim)
    draw_table(weight, config, seed)
    return weight


def test_a_table_depends_on_seed_and_name_only():
    before = torch.get_rng_state()
    first = drawn(table())
    torch.rand(7)
    assert torch.equal(first, drawn(table()))
    assert not torch.equal(first, drawn(table(), seed=2))
    other = EmbeddingBagConfig(num_embeddings=10, embedding_dim=3, name="u", feature_names=["f"])
    assert not torch.equal(first, drawn(other))
    torch.set_rng_state(before)


def test_drawing_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    drawn(table())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("rows", "columns"), [((0, 5), (0, 3)), ((5, 10), (0, 3)), ((3, 9), (1, 2)), ((9, 10), (0, 3))]
)
def test_a_shard_is_a_cut_of_the_whole_table(monkeypatch, rows, columns):
    whole = drawn(table())
    part = torch.zeros(rows[1] - rows[0], columns[1] - columns[0])
    monkeypatch.setattr(initialise, "shards", lambda _: [Shard(rows[0], columns[0], part)])
    draw_table(part, table(), 1)
    assert torch.equal(part, whole[rows[0] : rows[1], columns[0] : columns[1]])


def test_a_shard_draws_only_its_blocks(monkeypatch):
    drawn_rows = []

    def note(block):
        drawn_rows.append(block.shape[0])
        return block.fill_(1.0)

    monkeypatch.setattr(initialise, "ELEMENTWISE", {note})
    monkeypatch.setattr(initialise, "shards", lambda weight: [Shard(8, 0, weight)])
    draw_table(torch.zeros(2, 3), table(init_fn=note), 1)
    assert drawn_rows == [2]  # rows 8 and 9 of 10, blocks of 4


def test_blocks_differ():
    weight = drawn(table(8))
    assert not torch.equal(weight[:4], weight[4:])


def test_the_default_is_torchrecs_range():
    weight = drawn(table(1000, 16))
    assert weight.abs().max() <= (1 / 1000) ** 0.5
    assert weight.std().item() == pytest.approx((1 / 1000) ** 0.5 / 3**0.5, rel=0.05)


def test_an_init_fn_of_the_table_is_used():
    assert torch.equal(drawn(table(init_fn=init.zeros_)), torch.zeros(10, 3))
    assert drawn(table(1000, 16, init_fn=partial(init.normal_, mean=5.0, std=0.1))).mean().item() == pytest.approx(
        5.0, abs=0.01
    )


def test_an_init_fn_that_needs_the_whole_table_gets_it():
    given = torch.arange(30.0).view(10, 3)
    assert torch.equal(drawn(table(init_fn=lambda weight: weight.copy_(given))), given)


def test_writing_a_block_touches_only_common_rows():
    part = torch.zeros(3, 2)
    write_block([Shard(4, 1, part)], 2, torch.arange(12.0).view(4, 3))  # rows 2..5 into rows 4..6, columns 1..2
    assert part.tolist() == [[7.0, 8.0], [10.0, 11.0], [0.0, 0.0]]
