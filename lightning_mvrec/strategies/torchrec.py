"""TorchRec's sharded tables under Lightning's Trainer: collections are sharded in place, DDP does the dense rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment, TorchCheckpointIO
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.fabric.utilities.init import _materialize_meta_tensors
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.overrides.distributed import _sync_module_states
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import PostLocalSGDState
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_mvrec.strategies.checkpoint_async import Saves
from lightning_mvrec.strategies.clipping import clip_tables
from lightning_mvrec.strategies.constraints import Planner, measured_usage
from lightning_mvrec.strategies.evaluated import EvaluatedStrategy
from lightning_mvrec.strategies.guards import check_trainer
from lightning_mvrec.strategies.joined import JoinedOptimizer, group_tables, strip
from lightning_mvrec.strategies.left_out import warn_of_settings
from lightning_mvrec.strategies.loaders import even_out
from lightning_mvrec.strategies.losses import check_loss
from lightning_mvrec.strategies.noise import quiet
from lightning_mvrec.strategies.optimizers import TableOptimizer
from lightning_mvrec.strategies.overlapped import OverlappedStrategy
from lightning_mvrec.strategies.report import PlanReport
from lightning_mvrec.strategies.saved import SavedStrategy
from lightning_mvrec.strategies.sharding import shard_tables
from lightning_mvrec.strategies.summary import count_whole_tables


class TorchRecStrategy(OverlappedStrategy, SavedStrategy, EvaluatedStrategy):
    """Shard every TorchRec collection of a LightningModule and train the rest with DDP.

    Args:
        table_optimizer: How tables are trained: one for all, or by table name. None: the module's
            ``configure_table_optimizers()``, or what ``apply_optimizer_in_backward`` has said.
        sharding: ``"row_wise"``, ``"table_wise"``, ``"column_wise"``, ... for all sharded tables, or by table name;
            others as TorchRec's planner likes.
        planner: Further wishes by table (kernel, type of weights, cache), and how much memory there is.
        replicate: Collections (their paths in the module) or tables to keep whole on every rank, or ``"all"``.
        replicate_below: A collection is kept whole if every table of it has fewer rows than this.
        replica_groups: Number of groups of ranks (2D parallelism), above 0. Sharded tables lie over the ranks of a
            group, each group holds all of them, and ids and vectors stay in it. Before an optimizer step the gradients
            of rows are exchanged between groups, so that it is that of one group; see ``update_in_step``.
        schedule_tables: Whether a learning-rate schedule of the dense optimizer scales the tables' rates as well.
        check_ids: Whether to raise for ids outside a table: one pass over the ids of each lookup.
        check_loss: Whether all ranks stop, before its backward pass, when the loss of one is NaN or infinite. It costs
            an exchange of two numbers a step, on CUDA a wait for the device.
        update_in_step: Whether sharded tables are updated in the optimizer step, not in the backward pass: a table may
            then be looked up several times in a step, and manual optimization may accumulate batches and clip.
            ``accumulate_grad_batches`` and ``replica_groups`` above 1 and ``gradient_clip_val`` do it by themselves.
        clip_dense_only: Whether ``gradient_clip_val`` leaves the sharded tables out.
        convert_table_state: Whether a checkpoint's optimizer state of a table may be one value a row (RowWiseAdagrad)
            where this run keeps one a weight (Adagrad), or the other way round: copied out or averaged in. Inexact.
        look_ahead: Whether the next training batch is copied to the device, and its ids sent to the ranks that need
            them, during a step. ``"auto"``: on CUDA. See the page on several processes for where it is off.
        async_save: Whether training goes on while a checkpoint is written: the tensors are copied into CPU memory and
            written by a thread. The next save and the end of the fit wait for it; its errors end the run on all ranks.
        find_unused_parameters: DDP's: whether dense parameters may be left out of the loss on some rank.
        static_graph: DDP's: whether the dense part does the same in every step.
        gradient_as_bucket_view: DDP's: gradients share memory with what is exchanged.
        ddp_comm_hook: DDP's: how dense gradients are exchanged on CUDA.
        ddp_comm_state: State of ``ddp_comm_hook``.
        process_group_backend: ``gloo``, ``nccl``, ... None: what fits the device.
        timeout: After this time, a rank that waits for another gives up.
        failure_timeout: Seconds without progress inside a loop over batches after which all ranks end with a message
            about the one that hangs; a step, a callback or a wait for data that takes longer needs a larger one. What
            may take long (set-up, first batches, saving, ends of epochs) has ``timeout``. None: no rank is watched.
        cluster_environment: Lightning's: how processes find each other; None: as Lightning detects it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_mvrec.strategies import RowWiseAdagrad, TorchRecStrategy
        >>> strategy = TorchRecStrategy(table_optimizer=RowWiseAdagrad(lr=0.05), sharding={"item": "row_wise"})
        >>> trainer = Trainer(accelerator="cpu", devices=1, strategy=strategy, logger=False)
    """

    def __init__(
        self,
        table_optimizer: TableOptimizer | dict[str, TableOptimizer] | None = None,
        sharding: str | dict[str, str] | None = None,
        planner: Planner | None = None,
        replicate: str | Sequence[str] = (),
        replicate_below: int = 0,
        replica_groups: int = 1,
        schedule_tables: bool = True,
        check_ids: bool = True,
        check_loss: bool = True,
        update_in_step: bool = False,
        clip_dense_only: bool = False,
        convert_table_state: bool = False,
        look_ahead: bool | Literal["auto"] = "auto",
        async_save: bool = False,
        find_unused_parameters: bool = False,
        static_graph: bool = False,
        gradient_as_bucket_view: bool = False,
        ddp_comm_hook: Callable[..., Any] | None = None,
        ddp_comm_state: object | None = None,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
        failure_timeout: float | timedelta | None = 60.0,
        cluster_environment: ClusterEnvironment | None = None,
    ) -> None:
        if isinstance(ddp_comm_state, PostLocalSGDState):
            raise ValueError(
                "ddp_comm_state must not be a PostLocalSGDState: tables follow every gradient, they cannot be averaged "
                "from time to time"
            )
        super().__init__(
            failure_timeout=failure_timeout,
            cluster_environment=cluster_environment,
            ddp_comm_hook=ddp_comm_hook,
            ddp_comm_state=ddp_comm_state,
            process_group_backend=process_group_backend,
            timeout=timeout,
            find_unused_parameters=find_unused_parameters,
            static_graph=static_graph,
            gradient_as_bucket_view=gradient_as_bucket_view,
        )
        self._table_optimizer = table_optimizer
        self._sharding = sharding if isinstance(sharding, str) else dict(sharding or {})
        self._planner = planner
        self._replicate = replicate
        self._replicate_below = replicate_below
        if replica_groups < 1:
            raise ValueError(f"replica_groups must be above 0, got {replica_groups}")
        self._replica_groups = replica_groups
        self._schedule_tables = schedule_tables
        self._check_ids = check_ids
        self._check_loss = check_loss
        self._update_in_step = update_in_step
        self._clip_dense_only = clip_dense_only
        self._convert_table_state = convert_table_state
        if look_ahead not in (True, False, "auto"):
            raise ValueError(f'look_ahead must be True, False or "auto", got {look_ahead!r}')
        self._look_ahead = look_ahead
        self._saves = Saves(async_save, timeout)

    @property
    def plan_report(self) -> PlanReport | None:
        """Where every table lies; None before the first stage was set up."""
        return self._tables.report if self._tables else None

    def local_rows(self, table: str) -> tuple[int, Tensor]:
        """Return the rows of a table that are this rank's to work on, and the number of the first.

        Over all ranks every row comes once: a replicated table is divided evenly.

        Args:
            table: Name of the table.

        Shape:
            - output: ``(rows, D)``, a view of the weights without gradient; ``(0, D)`` on a rank that has none.

        Raises:
            ValueError: If no such table is known, or its rows are cut into columns.
        """
        if self._tables is None:
            raise ValueError("local_rows: tables are known once a stage of the Trainer has been set up")
        return self._tables.local_rows(table)

    def setup(self, trainer: pl.Trainer) -> None:
        """Shard the tables (once), then set up DDP and the optimizers."""
        assert self.accelerator is not None
        assert self.model is not None
        assert self.lightning_module is not None
        quiet()
        self.accelerator.setup(trainer)
        if type(self._checkpoint_io) not in (type(None), TorchCheckpointIO):
            raise ValueError(
                f"TorchRecStrategy writes checkpoint directories itself, a {type(self._checkpoint_io).__name__} would "
                "not be asked: leave it out of Trainer(plugins=...); TorchRecStrategy(async_save=True) writes while "
                "training goes on"
            )
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting and self._layer_sync:
            self.model = self._layer_sync.apply(self.model)
        self.model = self.precision_plugin.convert_module(self.model)
        for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop):
            loop.inference_mode = False  # a table on CPU raises under torch.inference_mode
        self._setup_tables(trainer)
        count_whole_tables(trainer.callbacks)  # type: ignore[attr-defined]
        _materialize_meta_tensors(self.model, self.root_device)
        self.model_to_device()
        if fitting:
            self.configure_ddp()
            self.setup_optimizers(trainer)
        else:
            _sync_module_states(self.model)
        self.setup_precision_plugin()
        if fitting:
            _optimizers_to_device(self.optimizers, self.root_device)
            self._saves.open(trainer)

    def _setup_tables(self, trainer: pl.Trainer) -> None:
        module = self.lightning_module
        assert module is not None
        self._tables = shard_tables(
            module,
            device=self.root_device,
            ranks_per_node=self.num_processes,
            table_optimizer=self._table_optimizer,
            sharding=self._sharding,
            replicate=self._replicate,
            replicate_below=self._replicate_below,
            check_ids=self._check_ids,
            planner=self._planner,
            usage=lambda: measured_usage(trainer),
            check=lambda names: check_trainer(trainer, names),
            replica_groups=self._replica_groups,
            timeout=self._timeout,
        )
        if self._tables.announced:
            return
        self._tables.announced = True
        if not self._tables.tables:
            rank_zero_warn(
                f"TorchRecStrategy found no EmbeddingBagCollection or EmbeddingCollection in {type(module).__name__}: "
                "there is nothing to shard, and the module trains as under DDP"
            )
            return
        rank_zero_info(str(self._tables.report))
        folder = trainer.log_dir or trainer.default_root_dir  # asks all ranks
        kept = trainer.loggers or trainer.checkpoint_callbacks  # where nothing else is, neither is the plan
        if self.is_global_zero and kept and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._tables.report.save(Path(folder) / "plan.json")

    def _count_lookups(self) -> Mapping[str, int]:
        return self._tables.count_lookups() if self._tables else {}

    def configure_ddp(self) -> None:
        """Wrap the module in DDP where ranks have something dense to average."""
        module = self.lightning_module
        assert module is not None
        assert self._tables is not None
        ignored = set(self._tables.ignored)
        dense = any(weight.requires_grad for name, weight in module.named_parameters() if name not in ignored)
        if dist.get_world_size() > 1 and dense:
            super().configure_ddp()
        else:
            _sync_module_states(module)

    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        """Join what ``configure_optimizers`` returns with the tables' optimizers."""
        super().setup_optimizers(trainer)
        assert self._tables is not None
        groups = group_tables(self._tables.tables, self._tables.modules)
        if not groups:
            return
        weights = self._tables.trained_weights()
        first, *others = self.optimizers
        trained = [table for table in self._tables.tables if table.optimizer is not None and not table.frozen]
        warn_of_settings(first, {table.name: self._tables.parameter(table) for table in trained})
        for other in others:
            strip(other, weights)
        for kernel in self._tables.held:
            kernel.forget()
        joined = JoinedOptimizer(
            first,
            groups,
            weights,
            self._schedule_tables,
            self._tables.held,
            sharded=[table.name for table in self._tables.sharded if not table.frozen],
            clip_dense_only=self._clip_dense_only,
            replicas=self._tables.replicas,
        )
        for guard in self._tables.guards.values():
            guard.prepare = joined.push
        clip_tables(self.precision_plugin, trainer)
        self.optimizers = [joined, *others]

    def process_dataloader(self, dataloader: object) -> object:
        """End on all ranks at once in training; an evaluation measures the batches of all ranks, each once."""
        assert self.lightning_module is not None
        assert self._tables is not None
        if self.lightning_module.trainer.training:
            return self._look_ahead_in(even_out(dataloader, self.root_device), self._tables)
        return self._evaluate_all_of(dataloader, self._tables, waits=self._beat.serve)

    def teardown(self) -> None:
        """Unwrap the module and let go. Sharded tables stay on their device: their kernels do not move with a module.

        Nor is a module moved that still has parameters on ``meta``: that error would hide the one that led here.
        """
        self._forget_ahead()
        self._forget_company()
        module = self.lightning_module
        with self._leaving():
            self._saves.close()
        fixed = self._tables is not None and bool(self._tables.sharded)
        if module is not None and not fixed and not any(weight.is_meta for weight in module.parameters()):
            super().teardown()
            return
        if isinstance(self.model, DistributedDataParallel):
            self.model = module
        if module is not None and self._layer_sync and self.model is not None:
            self.model = self._layer_sync.revert(self.model)
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's ``training_step`` under the guards of the tables."""
        assert self._tables is not None
        module = self.lightning_module
        assert module is not None
        self._saves.check(self.root_device)
        trainer = module.trainer
        clips = bool(trainer.gradient_clip_val) and not self._clip_dense_only
        hold = self._update_in_step or trainer.accumulate_grad_batches > 1 or clips or self._replica_groups > 1
        if self._joined is not None:
            self._joined.holding = hold
        with self._tables.training_step(hold, manual=not module.automatic_optimization):
            return super().training_step(*args, **kwargs)

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Look at the loss before tables are updated by it."""
        module = self.lightning_module
        assert module is not None
        if self._check_loss:
            self._note_stop(check_loss(closure_loss, module.trainer, self.root_device, self._stop_notice()))
        super().pre_backward(closure_loss)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Step, and allow the tables to be looked up again."""
        output = super().optimizer_step(optimizer, closure, model, **kwargs)
        assert self._tables is not None
        self._tables.end_step()
        return output
