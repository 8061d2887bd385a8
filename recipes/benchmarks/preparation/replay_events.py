"""RePlay: ``Dataset`` and ``SequenceTokenizer``, on a pandas or a Polars frame."""

from importlib.metadata import version

import clock
import pandas as pd
import polars as pl
from replay.data import Dataset, FeatureHint, FeatureInfo, FeatureSchema, FeatureSource, FeatureType
from replay.data.nn import SequenceTokenizer, TensorFeatureInfo, TensorFeatureSource, TensorSchema


def main() -> None:
    """Prepare, report."""
    options = clock.arguments()
    laps = clock.Clock()
    schema = FeatureSchema(
        [
            FeatureInfo("user", FeatureType.CATEGORICAL, FeatureHint.QUERY_ID),
            FeatureInfo("item", FeatureType.CATEGORICAL, FeatureHint.ITEM_ID),
            FeatureInfo("time", FeatureType.NUMERICAL, FeatureHint.TIMESTAMP),
        ]
    )
    feature = TensorFeatureInfo(
        "item_id",
        is_seq=True,
        feature_type=FeatureType.CATEGORICAL,
        feature_hint=FeatureHint.ITEM_ID,
        feature_sources=[TensorFeatureSource(FeatureSource.INTERACTIONS, "item")],
    )
    with laps.lap("read"):
        frame = (pd if options.frames == "pandas" else pl).DataFrame(clock.columns(options.log))
    with laps.lap("dataset"):
        dataset = Dataset(schema, frame)
    with laps.lap("sequences"):
        sequences = SequenceTokenizer(TensorSchema([feature])).fit_transform(dataset)
    versions = {"replay": version("replay-rec"), "pandas": pd.__version__, "polars": pl.__version__}
    laps.report(len(frame), versions=versions, users=len(sequences))


if __name__ == "__main__":
    main()
