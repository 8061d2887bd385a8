"""EventsDataModule: prepare once on one rank, load everywhere."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch.distributed as dist
from lightning.pytorch import LightningDataModule

from lightning_mvrec.data.collate import Collator
from lightning_mvrec.data.content import Content
from lightning_mvrec.data.covisits import CoVisits
from lightning_mvrec.data.engines.base import Engine
from lightning_mvrec.data.examples import (
    CoveringWindows,
    Examples,
    Windows,
    build_examples,
    next_targets,
)
from lightning_mvrec.data.filters import TargetFilter
from lightning_mvrec.data.labels import Label
from lightning_mvrec.data.loader import BatchDataset, BatchLoader
from lightning_mvrec.data.negatives import Negatives
from lightning_mvrec.data.prepare import prepare, store_path
from lightning_mvrec.data.settings import Settings, make_settings
from lightning_mvrec.data.sources.base import Source
from lightning_mvrec.data.split import Split
from lightning_mvrec.data.store import Store
from lightning_mvrec.data.train_pairs import met_in
from lightning_mvrec.data.transforms import Transform
from lightning_mvrec.data.usage import measure_usage
from lightning_mvrec.schema import Schema


class EventsDataModule(LightningDataModule):
    """Batches of users with several views of their history, from a source of events.

    Args:
        source: Where the events come from.
        targets: Views whose events are predicted.
        root: Folder of the source's files; may stay None for a source without files.
        split: What trains, validates and tests: global time 80/10/10 by default.
        target_filter: Which events of the target views may be targets: all by default.
        label: What a target's label is: that it happened, by default.
        transforms: Normalisation of numeric event fields by ``"<field>"`` or ``"<view>.<field>"`` (standardised by
            default); ``"time"`` adds the event's time as a field.
        deduplicate: Whether events equal in user, item and time are kept once in each view.
        content: Makes a frozen vector of each item from its texts (``TextVectors``), once, when data is prepared; a
            model adds it to the item's vector. None: no such vectors.
        store_dir: Folder of prepared stores, reused as long as files and settings are the same.
        max_len: Most recent events that are read of a view: one number, or by name of the view.
        negatives: Sampler of negatives, ``FullCatalogue()``, or None.
        batch_size: Users of a global training batch, over all ranks.
        eval_batch_size: Users of a global evaluation batch; ``batch_size`` by default.
        max_targets: Most targets of one training example; the largest ``max_len`` by default.
        windows: How a user's targets become training examples: all of them, in several examples where one does not
            hold them (``CoveringWindows()``, the default), or only the last ones (``LastWindow()``).
        eval_max_targets: Most targets of one evaluation example: 1 for ranking; more for labelled targets is quicker,
            each target then sees between half of ``max_len`` and ``max_len`` events. Evaluation always covers every
            target exactly once.
        train_pairs: Training targets are those alone whose item the user met in one of these views, at any time in
            training: what was viewed and later bought counts, what was viewed alone does not. None: all targets.
        min_history: Training targets with fewer earlier events, over all views, are left out.
        target_weights: Training weight of targets by view; 1 for those not named.
        filter_seen: Views whose earlier items are removed from the ranking in evaluation (the target itself never
            is); None removes nothing.
        bucket_batches: Batches among which examples are sorted by length; 1 for a plain shuffle.
        num_workers: Processes that build batches.
        pin_memory: Whether batches are put into page-locked memory.
        seed: Seed of order and negatives.
        engine: What prepares events that do not fit in memory, such as ``DuckDB()``; None reads them into memory. The
            store is the same.
        covisits: Links of co-visitation between items, from the training events, made beside the store; batches carry
            those of their histories, for a model with a ``CoVisitationTerm``. None: no links.

    Raises:
        ValueError: If an argument is out of its range, or names a view that does not exist.
    """

    def __init__(
        self,
        source: Source,
        targets: list[str],
        root: str | None = None,
        split: Split | None = None,
        target_filter: TargetFilter | None = None,
        label: Label | None = None,
        transforms: dict[str, Transform] | None = None,
        deduplicate: bool = True,
        content: Content | None = None,
        store_dir: str = ".mvrec",
        max_len: int | dict[str, int] = 50,
        negatives: Negatives | None = None,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        max_targets: int | None = None,
        windows: Windows | None = None,
        eval_max_targets: int = 1,
        min_history: int = 0,
        target_weights: dict[str, float] | None = None,
        filter_seen: list[str] | None = None,
        bucket_batches: int = 16,
        num_workers: int = 0,
        pin_memory: bool = False,
        seed: int = 0,
        engine: Engine | None = None,
        covisits: CoVisits | None = None,
        train_pairs: list[str] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("eval_batch_size", eval_batch_size or batch_size),
            ("max_targets", 1 if max_targets is None else max_targets),
            ("eval_max_targets", eval_max_targets),
            ("bucket_batches", bucket_batches),
        ):
            if value < 1:
                raise ValueError(f"{name} must be above 0, got {value}")
        if filter_seen and eval_max_targets > 1:
            raise ValueError(f"eval_max_targets must be 1 with filter_seen (one ranking each), got {eval_max_targets}")
        self.root = root
        self.settings: Settings = make_settings(
            source, targets, split, target_filter, label, transforms, deduplicate, content
        )
        self.store_dir = store_dir
        self.max_len = max_len
        self.negatives = negatives
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.max_targets = max_targets
        self.windows = windows or CoveringWindows()
        self.eval_max_targets = eval_max_targets
        self.min_history = min_history
        self.target_weights = target_weights or {}
        self.filter_seen = tuple(filter_seen or ())
        self.bucket_batches = bucket_batches
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.seed = seed
        self.engine = engine
        self.covisits = covisits
        self.train_pairs = tuple(train_pairs or ())
        self._store: Store | None = None
        self._schema: Schema | None = None
        self._usage: dict[str, tuple[float, float]] | None = None

    def prepare_data(self) -> None:
        """Prepare the store, or find the one that the same files and settings gave before; prints which.

        Of a new one it prints how many users, items and events there are, and what the split made of them.
        """
        path = store_path(self.settings, self.root, self.store_dir)
        found = path.is_dir()
        store = prepare(**vars(self.settings), root=self.root, store_dir=self.store_dir, engine=self.engine)
        if self.covisits is not None:
            self.covisits.graph(store)
        if self._store is None:  # Lightning calls this before every stage; one line is enough
            print(f"data: {'reusing' if found else 'prepared'} {store.path}")
            if not found:
                print(store.summary)

    def setup(self, stage: str | None = None) -> None:
        """Open the store."""
        if self._store is not None:
            return
        path = store_path(self.settings, self.root, self.store_dir)
        if not path.is_dir():
            prepare(**vars(self.settings), root=self.root, store_dir=self.store_dir, engine=self.engine)
        store = Store(path)
        self._schema = self._read_schema(store)
        for what, names in (
            ("filter_seen", self.filter_seen),
            ("target_weights", self.target_weights),
            ("train_pairs", self.train_pairs),
        ):
            for name in names:
                if name not in self._schema.view_names:
                    raise ValueError(f"{what} must name views {self._schema.view_names}, got {name!r}")
        if self.negatives is not None:
            # A copy: the sampler that came as an argument stays as it is in the configuration.
            self.negatives = copy.copy(self.negatives)
            self.negatives.setup(store.popularity)
        self._store = store

    def _read_schema(self, store: Store) -> Schema:
        views = store.schema.views
        names = store.schema.view_names
        lengths = self.max_len if isinstance(self.max_len, dict) else dict.fromkeys(names, self.max_len)
        unknown = set(lengths) - set(names)
        if unknown:
            raise ValueError(f"max_len must name views {names}, got {sorted(unknown)}")
        return replace(
            store.schema, views=tuple(replace(view, max_len=lengths.get(view.name, view.max_len)) for view in views)
        )

    @property
    def store(self) -> Store:
        """The prepared data; known after ``setup``."""
        if self._store is None:
            raise ValueError("store is known after setup(): call prepare_data() and setup() first")
        return self._store

    @property
    def schema(self) -> Schema:
        """The store's schema with the ``max_len`` of this module; known after ``setup``."""
        if self._schema is None:
            raise ValueError("schema is known after setup(): call prepare_data() and setup() first")
        return self._schema

    def collator(self, evaluation: bool = False) -> Collator:
        """Return what builds batches; its ``item_inputs(rows)`` gives the ``items`` KJT and the content of any rows."""
        seen = self.filter_seen if evaluation else ()
        return Collator(self.store, self.schema, self.negatives, seen, self.covisits, training=not evaluation)

    def examples(self, stage: str) -> Examples:
        """Return the examples of ``"train"``, ``"val"``, ``"test"`` or ``"predict"``."""
        max_len_V = np.array([view.max_len for view in self.schema.views])
        if stage == "predict":
            return build_examples(next_targets(self.store), CoveringWindows(), 1, max_len_V)
        targets = self.store.targets(stage)
        if stage != "train":
            return build_examples(targets, CoveringWindows(context=0.5), self.eval_max_targets, max_len_V)
        if self.train_pairs:
            targets = targets.take(met_in(self.store, targets, self.train_pairs))
        if self.target_weights:
            weight_V = [self.target_weights.get(name, 1.0) for name in self.schema.view_names]
            targets = replace(targets, weight=np.array(weight_V, dtype=np.float32)[targets.view])
        most = self.max_targets or int(max_len_V.max())
        return build_examples(targets, self.windows, most, max_len_V, self.min_history)

    def loader(self, stage: str) -> BatchLoader:
        """Return the loader of a stage for this rank."""
        rank, world_size = self._place()
        train = stage == "train"
        negatives = None if stage == "predict" else self.negatives
        collator = self.collator(evaluation=not train)
        collator.negatives = negatives
        dataset = BatchDataset(
            self.examples(stage),
            collator,
            negatives,
            batch_size=self.batch_size if train else self.eval_batch_size,
            shuffle=train,
            bucket_batches=self.bucket_batches,
            seed=self.seed,
            rank=rank,
            world_size=world_size,
        )
        return BatchLoader(dataset, self.num_workers, self.pin_memory)

    def _place(self) -> tuple[int, int]:
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        return 0, 1

    def pooling_factors(self) -> dict[str, float]:
        """Return the mean number of ids in a bag, by feature, in this rank's first training batches.

        With :meth:`bags_per_step`, it is asked by a strategy that plans where tables lie.
        """
        return {name: pooling for name, (_, pooling) in self._measured().items()}

    def bags_per_step(self) -> dict[str, float]:
        """Return the mean number of bags that a step of this rank looks up, by feature, in its first batches."""
        return {name: bags for name, (bags, _) in self._measured().items()}

    def _measured(self) -> dict[str, tuple[float, float]]:
        if self._usage is None:
            self._usage = measure_usage(self.loader("train").dataset)
        return self._usage

    def train_dataloader(self) -> BatchLoader:
        """Shuffled anew each epoch."""
        return self.loader("train")

    def val_dataloader(self) -> BatchLoader:
        """In the same order each time."""
        return self.loader("val")

    def test_dataloader(self) -> BatchLoader:
        """In the same order each time."""
        return self.loader("test")

    @property
    def predict_stage(self) -> str:
        """What predictions are made for: what comes next for every user, or, with labels, the test targets."""
        return "predict" if self.schema.label == "implicit" else "test"

    def predict_dataloader(self) -> BatchLoader:
        """One example a user with all that is known of them and an empty target; with labels, the test targets."""
        return self.loader(self.predict_stage)
