"""What is compared with what, and the ratios that are read off it.

A section's variants run in the same rounds, so that only these are divided by each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import loops
from rounds import Result, Variant
from workloads import Workload

RAW, LIGHTNING, OURS = "TorchRec, loop by hand", "the same, Lightning's strategy", "the same, TorchRecStrategy"
COLLECTION, RAW_COLLECTION = "EmbeddingCollection, TorchRecStrategy", "EmbeddingCollection, loop by hand"
SPARSE, DENSE = "nn.Embedding(sparse=True)", "nn.Embedding, dense gradient"
FUSED = "nn.Embedding, dense gradient, fused Adagrad"

#: Results by section, number of processes and variant.
Results = dict[tuple[str, int], dict[str, Result]]


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    Args:
        rows: Rows of the table.
        many_rows: Rows of the large one.
        batch: Users over all processes.
        length: Mean length of a history.
    """

    rows: int = 1_000_000
    many_rows: int = 20_000_000
    batch: int = 1024
    length: int = 50


def sections(scale: Scale) -> dict[str, list[Variant]]:
    """Return the variants of each section, by its name."""
    pooled = Workload("pooled", "uniform", "equal", scale.rows, batch=scale.batch, length=scale.length)
    sequence = replace(pooled, lookups="sequence")
    return {
        "pooled": [
            Variant(RAW, loops.raw(pooled, "pooled")),
            Variant(LIGHTNING, loops.lightning(pooled, "pooled")),
            Variant(OURS, loops.ours(pooled, "pooled")),
            Variant(SPARSE, loops.embedding(pooled, sparse=True)),
        ],
        "sequence": [
            Variant(RAW, loops.raw(sequence, "distinct")),
            Variant(LIGHTNING, loops.lightning(sequence, "distinct")),
            Variant(OURS, loops.ours(sequence, "distinct")),
            Variant(COLLECTION, loops.ours(sequence, "collection")),
            Variant(RAW_COLLECTION, loops.raw(sequence, "collection"), every=4, steps=2),
            Variant(SPARSE, loops.embedding(sequence, sparse=True)),
            Variant(DENSE, loops.embedding(sequence, sparse=False), every=4, steps=1),
            Variant(FUSED, loops.embedding(sequence, sparse=False, fused=True), every=4, steps=1),
        ],
        **{
            f"{load.lookups}, {load.ids} ids, {load.lengths} lengths": _ours_and_sparse(load)
            for plain in (pooled, sequence)
            for load in (replace(plain, ids="zipf"), replace(plain, lengths="unequal"))
        },
        **{
            f"{plain.lookups}, rows": [
                Variant(_rows(load.rows), loops.ours(load, kind))
                for load in (plain, replace(plain, rows=scale.many_rows))
            ]
            for plain, kind in ((pooled, "pooled"), (sequence, "collection"))
        },
    }


def ratios(results: Results, scale: Scale) -> dict[str, float]:
    """Return the named ratios; times are CPU time unless the name says wall. Those of sections not run are left out."""
    found: dict[str, float] = {}
    for (section, processes), by_name in results.items():
        at = f"_{processes}p"
        if section in ("pooled", "sequence"):
            ours, own, raw = by_name[OURS], by_name[LIGHTNING], by_name[RAW]
            found[f"{section}_over_lightning{at}"] = ours.over(own)
            found[f"{section}_ms_above_raw{at}"] = ours.above(raw)
            found[f"{section}_lightning_ms_above_raw{at}"] = own.above(raw)
        if SPARSE in by_name:
            ours = by_name.get(COLLECTION) or by_name[OURS]
            name = section.replace(", ", "_").replace(" ids", "").replace(" lengths", "")
            found[f"{name}_over_sparse{at}"] = ours.over(by_name[SPARSE])
            found[f"{name}_over_sparse_wall{at}"] = ours.over(by_name[SPARSE], "wall")
        if DENSE in by_name:
            found[f"dense_over_ours{at}"] = by_name[DENSE].over(by_name[COLLECTION])
            found[f"fused_dense_over_ours{at}"] = by_name[FUSED].over(by_name[COLLECTION])
        if section.endswith(", rows"):
            lookups = section.removesuffix(", rows")
            few, many = (by_name[_rows(rows)] for rows in (scale.rows, scale.many_rows))
            found[f"{lookups}_many_rows_over_few{at}"] = many.over(few)
            found[f"{lookups}_many_rows_over_few_wall{at}"] = many.over(few, "wall")
            if (section, 1) in results and processes == 2:
                one, two = (_table_mib(results[section, ranks], scale) for ranks in (1, 2))
                found[f"{lookups}_table_memory_2p_over_1p"] = two / one
    return {name: round(value, 4) for name, value in found.items()}


def table(section: str, processes: int, by_name: dict[str, Result]) -> Sequence[str]:
    """Lay a section's results out, one row a variant."""
    title = f"{section}, {processes} process{'es' if processes > 1 else ''}"
    return [
        f"| {title} | CPU ms a step | wall ms a step | peak MiB of a process |",
        "|---|---|---|---|",
        *(
            f"| {name} | {result.cpu_ms():.1f} | {result.wall_ms():.1f} | {result.peak_mib:.0f} |"
            for name, result in by_name.items()
        ),
        "",
    ]


def _ours_and_sparse(load: Workload) -> list[Variant]:
    made = [Variant(SPARSE, loops.embedding(load, sparse=True))]
    if load.lookups == "pooled":
        return [Variant(OURS, loops.ours(load, "pooled")), *made]
    distinct = Variant("distinct ids, TorchRecStrategy", loops.ours(load, "distinct"))
    return [Variant(COLLECTION, loops.ours(load, "collection")), distinct, *made]


def _rows(rows: int) -> str:
    return f"TorchRecStrategy, {rows:,} rows"


def _table_mib(by_name: dict[str, Result], scale: Scale) -> float:
    """Return what the rows that only the large table has take at the peak; what all runs need cancels out."""
    few, many = (by_name[_rows(rows)].peak_mib for rows in (scale.rows, scale.many_rows))
    return many - few
