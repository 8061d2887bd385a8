"""RecTools: ``Dataset.construct`` and what ``SASRecModel.fit`` does before its first batch."""

from importlib.metadata import version

import clock
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models.nn.transformers.sasrec import SASRecDataPreparator


def main() -> None:
    """Prepare, report."""
    options = clock.arguments()
    laps = clock.Clock()
    with laps.lap("read"):
        columns = clock.columns(options.log)
        frame = pd.DataFrame(
            {
                Columns.User: columns["user"],
                Columns.Item: columns["item"],
                Columns.Weight: 1.0,
                Columns.Datetime: columns["time"].astype("datetime64[s]").astype("datetime64[ns]"),
            },
            copy=False,
        )
        del columns
    with laps.lap("dataset"):
        dataset = Dataset.construct(frame)
    with laps.lap("sequences"):
        preparator = SASRecDataPreparator(session_max_len=100, batch_size=128, dataloader_num_workers=0)
        preparator.process_dataset_train(dataset)
        loader = preparator.get_dataloader_train()
    laps.report(
        len(frame), versions={"rectools": version("rectools"), "pandas": pd.__version__}, users=len(loader.dataset)
    )


if __name__ == "__main__":
    main()
