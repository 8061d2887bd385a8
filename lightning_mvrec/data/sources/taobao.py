"""Taobao UserBehavior: favourites, carts and purchases of nine days."""

from __future__ import annotations

from lightning_mvrec.data.sources.tables import LogSource


class Taobao(LogSource):
    """``events.csv`` with columns ``user_id, item_id, behavior_type, timestamp``: views ``fav``, ``cart``, ``buy``."""

    folder = "taobao"
    download = (
        'Download "User Behavior Data from Taobao for Recommendation" from its page at Alibaba Tianchi and lay it out '
        "as <root>/events.csv or <root>/taobao/events.csv, with a first line user_id,item_id,behavior_type,timestamp "
        "(seconds) and the behaviours fav, cart and buy."
    )

    def __init__(self) -> None:
        super().__init__(
            file="events.csv",
            behavior="behavior_type",
            views={"fav": "fav", "cart": "cart", "buy": "buy"},
            columns={"user": "user_id", "item": "item_id", "time": "timestamp"},
            numeric=["user", "item", "time"],
        )
