"""This package: ``prepare`` with DuckDB, from the parts to a store on disk."""

from importlib.metadata import version

import clock

from lightning_mvrec.data import GlobalTimeSplit, prepare
from lightning_mvrec.data.engines import DuckDB
from lightning_mvrec.data.sources import TableSource


def main() -> None:
    """Prepare, report."""
    options = clock.arguments()
    laps = clock.Clock()
    with laps.lap("prepare"):
        store = prepare(
            TableSource({"event": options.log.name}),
            str(options.log.parent),
            targets=["event"],
            split=GlobalTimeSplit(),
            store_dir=options.work / "stores",
            engine=DuckDB(memory_limit=options.memory, threads=options.threads),
            progress=False,
        )
    events = len(store.view("event").items)
    laps.report(events, versions={"duckdb": version("duckdb")}, bytes=sum(store.manifest["files"].values()))


if __name__ == "__main__":
    main()
