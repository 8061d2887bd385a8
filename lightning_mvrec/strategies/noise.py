"""Messages of the libraries underneath to each other, which nobody who trains can act on."""

from __future__ import annotations

import logging
import warnings

# A script's first batch is often made before there is a strategy.
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


def quiet() -> None:
    """Silence what torch, torchrec and lightning of today's versions say in every run; everything else is heard."""
    # torchrec 1.8 calls names that torch 2.13 renames, lightning 2.6 a class that it will drop.
    for message in (
        r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        "Please use DTensor instead and we are deprecating ShardedTensor",
    ):
        warnings.filterwarnings("ignore", message=message)
