"""Peers exchange the gradients of their rows before an update, which is then that of the global batch on each of them.

What they exchange is what their group has looked up here, and the gradient of the answers: a kernel makes one update of
it all. They get the same numbers in the same order, so that their rows stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_mvrec.strategies.held import HeldKernel
from lightning_mvrec.strategies.replicas import Replicas


@torch.no_grad()
def share(kernels: Sequence[HeldKernel], replicas: Replicas) -> None:
    """Give each kernel its own and its peers' gradients, as a mean over groups; every rank calls it.

    Three exchanges for all kernels together: of sizes, of ids and lengths, of gradients and weights.

    Args:
        kernels: This rank's; peers have the same.
        replicas: Who the peers are.
    """
    if replicas.count == 1 or not kernels:
        return
    mine = [kernel.take() for kernel in kernels]
    whole = [part for ids_N, lengths, _, _ in mine for part in (ids_N, lengths)]
    real = [part for _, _, gradient, weights in mine for part in (gradient, weights)]
    sizes = torch.tensor([len(part) for part in [*whole, *real]], device=whole[0].device)
    everywhere = [torch.empty_like(sizes) for _ in range(replicas.count)]
    dist.all_gather(everywhere, sizes, group=replicas.peers)
    sizes_of = torch.stack(everywhere).tolist()  # on CUDA a wait for the device
    found_whole = _gather(whole, [sizes[: len(whole)] for sizes in sizes_of], replicas)
    found_real = _gather(real, [sizes[len(whole) :] for sizes in sizes_of], replicas)
    for number, kernel in enumerate(kernels):
        place = slice(2 * number, 2 * number + 2)
        for whole_of, real_of in zip(found_whole, found_real, strict=True):
            (ids_N, lengths), (gradient, weights) = whole_of[place], real_of[place]
            # TorchRec has taken the mean over the ranks of a group.
            kernel.put(ids_N, lengths, gradient / replicas.count, weights)


def _gather(parts: Sequence[Tensor], sizes: Sequence[Sequence[int]], replicas: Replicas) -> list[list[Tensor]]:
    """Return each peer's parts, whose sizes are known."""
    most = max(sum(of_peer) for of_peer in sizes)
    joined = torch.cat([*parts])
    if not most:
        return [[*joined.split([*of_peer])] for of_peer in sizes]
    padded = torch.nn.functional.pad(joined, (0, most - len(joined)))
    everywhere = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(everywhere, padded, group=replicas.peers)
    return [[*found[: sum(of_peer)].split([*of_peer])] for found, of_peer in zip(everywhere, sizes, strict=True)]
