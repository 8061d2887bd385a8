"""Small batches made by hand from plain lists, for tests of models and losses."""

import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from lightning_mvrec.batch import MultiViewBatch, ViewBatch
from lightning_mvrec.schema import Field, Schema, View

SCHEMA = Schema(
    views=(View("click", max_len=8), View("rate", max_len=8, fields=(Field("stars", "numeric"),))),
    num_items=12,
    num_users=6,
    targets=("click",),
    item_fields=(Field("genre", "multi_hot", 4),),
    user_fields=(Field("job", "categorical", 3),),
)
"""Two views, an item field and a user field."""


def item_kjt(rows: list[int]) -> KeyedJaggedTensor:
    """Items ``rows`` with genres ``row % 3 + 1`` and, for even rows, 0 as well."""
    genres = [[row % 3 + 1] + ([0] if row % 2 == 0 else []) for row in rows]
    return KeyedJaggedTensor(
        keys=["item_id", "item_genre"],
        values=torch.tensor(rows + [genre for each in genres for genre in each]),
        lengths=torch.tensor([1] * len(rows) + [len(each) for each in genres]),
    )


def make_batch(
    users: list[int],
    click: list[list[tuple[int, int]]],
    rate: list[list[tuple[int, int, float]]],
    targets: list[list[tuple[int, int]]],
    negative: list[int] | None = None,
    catalogue: bool = False,
) -> MultiViewBatch:
    """Make a batch of :data:`SCHEMA`.

    Args:
        users: User rows.
        click: By user, ``(item, time)`` events.
        rate: By user, ``(item, time, stars)`` events.
        targets: By user, ``(item, time)`` targets of the view ``click``; history is whatever is strictly earlier.
        negative: Item rows shared by all targets.
        catalogue: Whether the batch's items are the whole table.
    """
    named = {item for view in (click, rate) for events in view for item, *_ in events}
    named |= {item for each in targets for item, _ in each} | set(negative or [])
    rows = list(range(SCHEMA.num_items)) if catalogue else sorted(named)
    position = {row: index for index, row in enumerate(rows)}
    steps = max(1, max(len(each) for each in targets))
    batch = len(users)
    target_BK = torch.zeros(batch, steps, dtype=torch.int64)
    time_BK, weight_BK = torch.zeros(batch, steps, dtype=torch.int64), torch.zeros(batch, steps)
    asof_BKV = torch.zeros(batch, steps, 2, dtype=torch.int64)
    for user, each in enumerate(targets):
        for step, (item, time) in enumerate(each):
            target_BK[user, step], time_BK[user, step], weight_BK[user, step] = position[item], time, 1.0
            for view, events in enumerate((click[user], rate[user])):
                asof_BKV[user, step, view] = sum(event[1] < time for event in events)

    def view(events: list[list[tuple]], stars: bool) -> ViewBatch:
        flat = [event for each in events for event in each]
        return ViewBatch(
            position_E=torch.tensor([position[event[0]] for event in flat], dtype=torch.int64),
            lengths_B=torch.tensor([len(each) for each in events]),
            time_E=torch.tensor([event[1] for event in flat], dtype=torch.int64),
            fields={"stars": torch.tensor([event[2] for event in flat], dtype=torch.float32)} if stars else {},
        )

    return MultiViewBatch(
        items=item_kjt(rows),
        users=KeyedJaggedTensor(
            keys=["user_id", "user_job"],
            values=torch.tensor(users + [user % 3 for user in users]),
            lengths=torch.ones(2 * batch, dtype=torch.int64),
        ),
        views={"click": view(click, False), "rate": view(rate, True)},
        target_BK=target_BK,
        weight_BK=weight_BK,
        label_BK=torch.ones(batch, steps),
        time_BK=time_BK,
        asof_BKV=asof_BKV,
        total_weight=float(weight_BK.sum()),
        negative=None if negative is None else torch.tensor([position[row] for row in negative]),
        catalogue=catalogue,
    )
