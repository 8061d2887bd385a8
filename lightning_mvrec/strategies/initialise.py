"""The first values of a table: the same whatever the plan and the number of ranks.

TorchRec drops the weights that a collection had on CPU when it shards it, and its own first values depend on where a
shard lies. Here weights that a module had are kept (rank 0's, as under DDP), and a table on ``meta`` is drawn from a
seed, its name and the number of a block of rows, so that no rank ever holds more of it than its own rows.
"""

from __future__ import annotations

import hashlib
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec.modules.embedding_configs import BaseEmbeddingConfig

from lightning_mvrec.strategies.tables import blocks, shards, write_block

#: Rows drawn together. A different number gives different first values.
BLOCK_ROWS = 8192
#: Functions that treat every weight alike, so that a block of rows may be drawn alone.
ELEMENTWISE = {
    torch.nn.init.uniform_,
    torch.nn.init.normal_,
    torch.nn.init.trunc_normal_,
    torch.nn.init.constant_,
    torch.nn.init.zeros_,
    torch.nn.init.ones_,
}


def common_seed(device: torch.device) -> int:
    """Return rank 0's seed (``seed_everything``'s, where it was called) on every rank."""
    seed = torch.tensor([torch.initial_seed() % 2**63], dtype=torch.int64, device=device)
    dist.broadcast(seed, 0)
    return int(seed.item())


@torch.no_grad()
def draw_table(target: Tensor | ShardedTensor, config: BaseEmbeddingConfig, seed: int) -> None:
    """Fill this rank's part of a table with its first values.

    An ``init_fn`` of the table's own is called on blocks of rows if it is one of torch's element-wise functions (or a
    ``functools.partial`` of one), and on the whole table otherwise, which then lies in this process's memory for a
    moment.
    """
    init = config.init_fn
    assert init is not None  # a config without one has made its own
    plain = init.func if isinstance(init, partial) else init
    size = BLOCK_ROWS if plain in ELEMENTWISE else config.num_embeddings
    parts = shards(target)
    for number, (first, end) in enumerate(blocks(config.num_embeddings, size)):
        if not any(part.first_row < end and first < part.first_row + part.tensor.shape[0] for part in parts):
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_hash(seed, config.name, number))
            block = torch.empty(end - first, config.embedding_dim)
            init(block)
        write_block(parts, first, block)


@torch.no_grad()
def keep_table(target: Tensor | ShardedTensor, weight: Tensor, device: torch.device) -> None:
    """Copy the weights that rank 0's module had into every rank's part of the table, block by block."""
    parts = shards(target)
    for first, end in blocks(weight.shape[0], 1 << 16):
        block = weight[first:end].to(device).contiguous()
        if dist.get_world_size() > 1:
            block = block.clone()
            dist.broadcast(block, 0)
        write_block(parts, first, block)


def _hash(seed: int, table: str, block: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{table}/{block}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
