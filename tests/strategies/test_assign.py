import pytest
import torch
import torchrec.optim
from torch import nn
from torch.distributed.optim import _apply_optimizer_in_backward
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

from lightning_mvrec.strategies import SGD, Adagrad, Adam, RowWiseAdagrad
from lightning_mvrec.strategies.assign import assign_tables, from_torch, replicated_paths
from lightning_mvrec.strategies.tables import find_collections


class Two(nn.Module):
    """Tables big (100 rows) and small (5) in ``first``, tiny (3) in ``second.inner``."""

    def __init__(self):
        super().__init__()
        self.first = make(big=100, small=5)
        self.second = nn.Module()
        self.second.inner = make(tiny=3)


def make(**rows):
    return EmbeddingBagCollection(
        [
            EmbeddingBagConfig(num_embeddings=n, embedding_dim=4, name=name, feature_names=[name])
            for name, n in rows.items()
        ]
    )


def assign(module, optimizer=None, replicate=(), below=0, device="cpu"):
    return assign_tables(module, find_collections(module), optimizer, replicate, below, device)


@pytest.mark.parametrize(
    ("replicate", "below", "expected"),
    [
        ((), 0, set()),
        ("all", 0, {"first", "second.inner"}),
        (["all"], 0, {"first", "second.inner"}),
        (["second.inner"], 0, {"second.inner"}),
        (["tiny"], 0, {"second.inner"}),
        (["big", "small"], 0, {"first"}),
        ((), 4, {"second.inner"}),
        ((), 6, {"second.inner"}),  # small is small enough, but big is not, and a collection stays together
        ((), 101, {"first", "second.inner"}),
    ],
)
def test_a_collection_is_replicated_whole_or_not_at_all(replicate, below, expected):
    assert replicated_paths(find_collections(Two()), replicate, below) == expected


def test_a_part_of_a_collection_cannot_be_replicated():
    with pytest.raises(ValueError, match=r"'first' also holds \['small'\]"):
        replicated_paths(find_collections(Two()), ["big"], 0)


def test_an_unknown_name_to_replicate_is_refused():
    with pytest.raises(ValueError, match=r"\['bgi'\] are not among"):
        replicated_paths(find_collections(Two()), ["bgi"], 0)


def test_the_strategy_comes_before_the_module_and_the_module_before_in_backward():
    module = Two()
    module.configure_table_optimizers = lambda: {"small": Adagrad(lr=0.2), "big": Adagrad(lr=0.2)}
    _apply_optimizer_in_backward(torch.optim.SGD, module.parameters(), {"lr": 0.3})
    found = {table.name: table.optimizer for table in assign(module, {"big": RowWiseAdagrad(lr=0.1)})}
    assert found == {"big": RowWiseAdagrad(lr=0.1), "small": Adagrad(lr=0.2), "tiny": SGD(lr=0.3)}


def test_one_optimizer_is_for_all_tables():
    assert {table.optimizer for table in assign(Two(), SGD(lr=0.1))} == {SGD(lr=0.1)}


def test_a_table_that_nobody_trains_is_named():
    with pytest.raises(ValueError, match=r"no table optimizer for \['small', 'tiny'\]"):
        assign(Two(), {"big": SGD(lr=0.1)})


def test_without_any_table_optimizer_replicated_tables_are_the_modules_own():
    assert [table.optimizer for table in assign(Two(), replicate="all")] == [None] * 3


def test_a_replicated_table_beside_a_trained_one_needs_an_optimizer_too():
    with pytest.raises(ValueError, match=r"no table optimizer for \['tiny'\]"):
        assign(Two(), {"big": SGD(lr=0.1), "small": SGD(lr=0.1)}, replicate=["tiny"])


def test_an_optimizer_for_an_unknown_table_is_refused():
    with pytest.raises(ValueError, match=r"unknown table \['bigger'\]"):
        assign(Two(), {"bigger": SGD(lr=0.1)})


def test_a_torch_optimizer_is_not_a_table_optimizer():
    with pytest.raises(ValueError, match="must be a table optimizer or a dict"):
        assign(Two(), torch.optim.SGD)


def test_adam_needs_cuda_or_replication():
    with pytest.raises(ValueError, match=r"table 'big' is sharded, and TorchRec has no fused Adam on cpu"):
        assign(Two(), Adam(lr=0.1))
    assert assign(Two(), Adam(lr=0.1), device="cuda")
    assert assign(Two(), Adam(lr=0.1), replicate="all")


def test_a_width_that_kernels_do_not_have_needs_replication():
    module = nn.Module()
    config = EmbeddingBagConfig(num_embeddings=5, embedding_dim=30, name="odd", feature_names=["odd"])
    module.bags = EmbeddingBagCollection([config])
    with pytest.raises(ValueError, match=r"'odd' is sharded, and its embedding_dim must then be a multiple of 4"):
        assign(module, SGD(lr=0.1))
    assert assign(module, SGD(lr=0.1), replicate="all")


def test_the_hook_of_an_optimizer_in_backward_is_taken_away():
    module = Two()
    _apply_optimizer_in_backward(torch.optim.SGD, module.first.parameters(), {"lr": 1.0})
    assign(module, {"tiny": SGD(lr=1.0)}, replicate="all")
    weight = module.first.embedding_bags["small"].weight
    weight.sum().backward()
    assert weight.grad.unique().tolist() == [1.0]  # the hook would have used it up


@pytest.mark.parametrize(
    ("kind", "kwargs", "expected"),
    [
        (torch.optim.SGD, {"lr": 0.1}, SGD(lr=0.1)),
        (torchrec.optim.SGD, {"lr": 0.1}, SGD(lr=0.1)),
        (torch.optim.Adagrad, {"lr": 0.1}, Adagrad(lr=0.1, eps=1e-10)),
        (torchrec.optim.RowWiseAdagrad, {"lr": 0.1, "eps": 1e-5}, RowWiseAdagrad(lr=0.1, eps=1e-5)),
        (torch.optim.Adam, {"lr": 0.1, "betas": [0.8, 0.9]}, Adam(lr=0.1, betas=(0.8, 0.9))),
    ],
)
def test_optimizers_of_torch_and_torchrec_are_understood(kind, kwargs, expected):
    assert from_torch(kind, kwargs) == expected


@pytest.mark.parametrize(
    ("kind", "kwargs", "message"),
    [
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, "the fused SGD ignores momentum"),
        (torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}, "the fused SGD ignores weight_decay"),
        (torchrec.optim.RowWiseAdagrad, {"lr": 0.1, "weight_decay": 1.0}, "torch's RowWiseAdagrad adds weight_decay"),
        (torch.optim.Adagrad, {"lr": 0.1, "weight_decay": 1.0}, "Adagrad ignores weight_decay"),
        (torch.optim.Adam, {"lr": 0.1, "weight_decay": 0.1}, "say which you mean"),
        (torch.optim.RMSprop, {"lr": 0.1}, "no fused kernel for RMSprop"),
    ],
)
def test_what_a_kernel_would_ignore_is_refused(kind, kwargs, message):
    with pytest.raises(ValueError, match=f"table 't': .*{message}"):
        from_torch(kind, kwargs, "t")


def test_one_collection_at_two_places_is_refused():
    module = Two()
    module.again = module.first
    with pytest.raises(
        ValueError, match="one collection must hang at one place of the module, got 'first' and 'again'"
    ):
        find_collections(module)
