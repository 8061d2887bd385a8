"""How often batches look features up: what a planner of sharded tables wants to know."""

from __future__ import annotations

from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.data.loader import BatchDataset


def measure_usage(dataset: BatchDataset, batches: int = 4) -> dict[str, tuple[float, float]]:
    """Return ``(bags a batch, ids a bag)`` by feature, as means over the first batches of the first epoch.

    Args:
        dataset: One rank's batches.
        batches: How many of them to build.
    """
    read = [dataset[(0, number)] for number in range(min(batches, len(dataset)))]
    bags: dict[str, int] = {}
    ids: dict[str, int] = {}
    for batch in read:
        for features in (batch.items, batch.users):
            assert isinstance(features, KeyedJaggedTensor)
            for name, count in zip(features.keys(), features.length_per_key(), strict=True):
                bags[name] = bags.get(name, 0) + features.stride()
                ids[name] = ids.get(name, 0) + count
    return {name: (bags[name] / len(read), ids[name] / bags[name]) for name in bags if bags[name]}
