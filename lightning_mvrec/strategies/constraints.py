"""What the planner must respect: wishes by table, memory of a process, and how often tables are looked up."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.modules.embedding_configs import DataType

from lightning_mvrec.strategies.tables import Table, weights

#: Kernels that keep a table in host memory, for devices with memory of their own.
HOST_KERNELS = (EmbeddingComputeKernel.FUSED_UVM.value, EmbeddingComputeKernel.FUSED_UVM_CACHING.value)
KERNELS = (EmbeddingComputeKernel.FUSED.value, *HOST_KERNELS)
DTYPES = {
    "fp32": (DataType.FP32, torch.float32),
    "fp16": (DataType.FP16, torch.float16),
    "bf16": (DataType.BF16, torch.bfloat16),
}


@dataclass(frozen=True)
class TableConstraint:
    """Wishes for one sharded table; None leaves the choice to the planner.

    Args:
        sharding: ``row_wise``, ``table_wise``, ``column_wise``, ..., as in ``TorchRecStrategy(sharding=...)``.
        kernel: ``fused``: on the device. ``fused_uvm_caching``: in host memory behind a cache on the device.
            ``fused_uvm``: in host memory. The last two are for CUDA.
        dtype: ``fp32``, ``fp16`` or, on CUDA, ``bf16``, in which weights are kept; lookups return float32 either way.
        cache: With ``fused_uvm_caching``, the share of the table's rows that the device holds, in (0, 1].

    Raises:
        ValueError: If a value is not among these.

    Example:
        >>> TableConstraint(sharding="row_wise", dtype="fp16").dtype
        'fp16'
    """

    sharding: str | None = None
    kernel: str | None = None
    dtype: str | None = None
    cache: float | None = None

    def __post_init__(self) -> None:
        if self.kernel is not None and self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {list(KERNELS)}, got {self.kernel!r}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {list(DTYPES)}, got {self.dtype!r}")
        if self.cache is not None:
            if self.kernel != EmbeddingComputeKernel.FUSED_UVM_CACHING.value:
                raise ValueError(f"cache={self.cache} needs kernel='fused_uvm_caching', got kernel={self.kernel!r}")
            if not 0 < self.cache <= 1:
                raise ValueError(f"cache must be a share of rows in (0, 1], got {self.cache}")


@dataclass(frozen=True)
class Exchanged:
    """In which type ranks exchange vectors of sharded tables and their gradients; tables and lookups stay float32.

    Args:
        forward: ``fp32``, ``fp16`` or ``bf16``, of vectors.
        backward: The same, of their gradients.

    Raises:
        ValueError: If a type is not among these. TorchRec's ``int8`` and ``fp8`` failed on CPU with gloo.

    Example:
        >>> Exchanged(forward="fp16", backward="bf16").bytes
        (2, 2)
    """

    forward: str = "fp32"
    backward: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("forward", "backward"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"{name} must be one of {list(DTYPES)}, got {getattr(self, name)!r}")

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes of a number forth and back."""
        return DTYPES[self.forward][1].itemsize, DTYPES[self.backward][1].itemsize

    def codecs(self) -> dict[str, Any] | None:
        """Return what TorchRec's sharders want."""
        if self == Exchanged():
            return None
        settings = QCommsConfig(forward_precision=CommType(self.forward), backward_precision=CommType(self.backward))
        return get_qcomm_codecs_registry(settings)


@dataclass(frozen=True)
class Planner:
    """What TorchRec's planner is told beside the number of processes and machines, which the Trainer knows.

    Args:
        constraints: Wishes by table name.
        device_memory_gb: Memory of one device, in 10^9 bytes; None asks the device. A quarter of it is left to the
            rest of the model.
        host_memory_gb: Host memory that one process may use for tables, in 10^9 bytes; None: the machine's, divided by
            its processes.
        exchanged: In which type ranks exchange vectors and their gradients.

    Raises:
        ValueError: If an amount of memory is not above 0.

    Example:
        >>> Planner(constraints={"item": TableConstraint(dtype="fp16")}, host_memory_gb=16.0).host_memory_gb
        16.0
    """

    constraints: dict[str, TableConstraint] = field(default_factory=dict)
    device_memory_gb: float | None = None
    host_memory_gb: float | None = None
    exchanged: Exchanged = Exchanged()

    def __post_init__(self) -> None:
        for name in ("device_memory_gb", "host_memory_gb"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, got {value}")

    def memory(self, device: torch.device, ranks_per_node: int) -> tuple[int | None, int]:
        """Return bytes of one device (None on CPU) and of host memory for one process."""
        host = int(self.host_memory_gb * 1e9) if self.host_memory_gb else _physical_memory() // ranks_per_node
        if device.type != "cuda":
            return None, host
        if self.device_memory_gb:
            return int(self.device_memory_gb * 1e9), host
        return torch.cuda.get_device_properties(device).total_memory, host


@dataclass(frozen=True)
class Usage:
    """How often a feature is looked up in one step of one rank.

    Args:
        bags: Bags a step: users, or distinct items.
        pooling: Ids in a bag, on average.
    """

    bags: float
    pooling: float


def measured_usage(trainer: pl.Trainer) -> dict[str, Usage]:
    """Return what the data module, or else the module, says of its features.

    It may offer ``pooling_factors() -> dict[feature, ids in a bag]`` and
    ``bags_per_step() -> dict[feature, bags of one rank in a step]``; without the second, nothing is said.
    """
    owners: tuple[Any, ...] = (getattr(trainer, "datamodule", None), trainer.lightning_module)
    for owner in owners:
        if hasattr(owner, "pooling_factors") and hasattr(owner, "bags_per_step"):
            pooling: dict[str, float] = owner.pooling_factors()
            bags: dict[str, float] = owner.bags_per_step()
            return {name: Usage(float(bags[name]), float(pooling[name])) for name in pooling if name in bags}
    return {}


def check_constraints(planner: Planner, tables: Sequence[Table], sharding: Any, device: torch.device) -> None:
    """Refuse wishes that cannot be met.

    Raises:
        ValueError: With the table, the wish and the way out.
    """
    sharded = {table.name: table for table in tables if not table.replicated}
    if unknown := sorted(set(planner.constraints) - set(sharded)):
        raise ValueError(f"constraints must name sharded tables: {unknown} are not among {sorted(sharded)}")
    for name, wish in planner.constraints.items():
        if wish.sharding is not None and not isinstance(sharding, str) and name in sharding:
            raise ValueError(f"table {name!r}: sharding is given twice, by sharding= and by its constraint; keep one")
        if wish.kernel in HOST_KERNELS and device.type != "cuda":
            raise ValueError(
                f"table {name!r}: kernel={wish.kernel!r} keeps a table in host memory beside the device's own; on "
                f"{device.type} all memory is the host's. Leave kernel out, or run on CUDA"
            )
        if wish.dtype == "bf16" and device.type != "cuda":
            raise ValueError(
                f"table {name!r}: dtype='bf16' has no kernel on {device.type} (split_embedding_cpu_forward is not "
                "implemented for BFloat16); use fp16 or fp32, or run on CUDA"
            )


def apply_dtypes(planner: Planner, tables: Sequence[Table], collections: Mapping[str, nn.Module]) -> None:
    """Give tables the type of weights that was asked for, before they are sharded."""
    for table in tables:
        wish = planner.constraints.get(table.name)
        if wish is None or wish.dtype is None:
            continue
        kind, dtype = DTYPES[wish.dtype]
        table.config.data_type = kind
        owner: Any = weights(collections[table.path])[table.name]
        weight = owner.weight
        if weight.dtype != dtype:
            owner.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=weight.requires_grad)


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
