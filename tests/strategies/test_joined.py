import pytest
import torch
from torch import nn

from lightning_mvrec.strategies import SGD, RowWiseAdagrad
from lightning_mvrec.strategies.joined import JoinedOptimizer, TableGroup


class Kernel:
    """Stands for a fused kernel: remembers the learning rates it is given."""

    def __init__(self):
        self._emb_module = self
        self.rates = []

    def set_learning_rate(self, lr):
        self.rates.append(round(lr, 6))


def joined(lr=0.1, table_lr=1.0, follow=True):
    weight, table = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 2))
    dense = torch.optim.SGD([weight, table], lr=lr)
    kernel = Kernel()
    group = TableGroup(SGD(lr=table_lr), ["t"], {"t": (table, {})}, [kernel])
    return JoinedOptimizer(dense, [group], [table], follow), dense, weight, table, kernel


def backward(*weights):
    sum(weight.sum() for weight in weights).backward()


def test_a_step_calls_its_closure_once_and_trains_both():
    optimizer, _, weight, table, _ = joined()
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        backward(weight, table)
        return "loss"

    assert optimizer.step(closure) == "loss"
    assert calls == [1]
    assert weight.tolist() == pytest.approx([1 - 0.1] * 2)
    assert table.flatten().tolist() == pytest.approx([1 - 1.0] * 6)


def test_a_table_is_taken_out_of_the_dense_optimizer():
    _, dense, weight, table, _ = joined()
    assert [id(item) for item in dense.param_groups[0]["params"]] == [id(weight)]
    assert table not in dense.state


def test_table_groups_come_last_and_hold_replicated_weights_only():
    optimizer, _, _, table, _ = joined()
    assert len(optimizer.param_groups) == 2
    assert [id(item) for item in optimizer.param_groups[1]["params"]] == [id(table)]
    assert optimizer.param_groups[1]["tables"] == ["t"]


def test_the_learning_rate_reaches_kernels_before_the_backward_pass():
    optimizer, _, weight, table, kernel = joined()
    optimizer.param_groups[1]["lr"] = 0.25

    def closure():
        assert kernel.rates == [0.25]
        backward(weight, table)

    optimizer.step(closure)


def test_a_schedule_of_the_dense_optimizer_scales_the_tables():
    optimizer, dense, weight, table, kernel = joined(table_lr=2.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(dense, lambda step: [0.5, 1.0, 0.25][step])
    for _ in range(2):
        backward(weight, table)
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    assert kernel.rates == [1.0, 2.0, 0.5]


def test_a_plateau_scales_the_tables():
    optimizer, dense, *_, kernel = joined(table_lr=2.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(dense, factor=0.5, patience=0)
    for loss in (1.0, 2.0):
        optimizer.step()
        schedule.step(loss)
    optimizer.step()
    assert kernel.rates == [2.0, 1.0]


def test_one_cycle_peaks_at_the_tables_own_rate():
    optimizer, dense, *_, kernel = joined(table_lr=2.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(dense, max_lr=0.4, total_steps=10, cycle_momentum=False)
    for _ in range(9):
        optimizer.step()
        schedule.step()
    assert max(kernel.rates) == pytest.approx(2.0)
    assert kernel.rates[0] == pytest.approx(2.0 / 25)


def test_tables_follow_the_group_that_held_them():
    weight, table = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3, 2))
    dense = torch.optim.SGD([{"params": [weight]}, {"params": [table], "lr": 7.0}], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(dense, [lambda step: 1.0, lambda step: 0.5**step])
    kernel = Kernel()
    group = TableGroup(SGD(lr=2.0), ["t"], {"t": (table, {})}, [kernel], all_weights=[table])
    optimizer = JoinedOptimizer(dense, [group], [table])
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert kernel.rates == [2.0, 1.0, 0.5]


def test_who_writes_a_tables_rate_has_set_it():
    """A warm-up by hand writes one rate into all groups; the schedule's factor must not come on top of it."""
    optimizer, dense, *_, kernel = joined(lr=0.1, table_lr=2.0)
    for share in (0.25, 0.5):
        for group in optimizer.param_groups:
            group["lr"] = share * 0.1
        optimizer.step()
    assert kernel.rates == [0.025, 0.05]
    dense.param_groups[0]["lr"] = 0.1  # twice what it was
    optimizer.step()
    assert kernel.rates[-1] == pytest.approx(0.1)


def test_groups_show_the_rate_at_work_under_names_of_their_tables():
    optimizer, dense, *_ = joined(lr=0.1, table_lr=2.0)
    dense.param_groups[0]["lr"] = 0.05
    group = optimizer.param_groups[1]
    assert (group["name"], group["lr"]) == ("tables/t", 1.0)


def test_tables_need_not_follow():
    optimizer, dense, *_, kernel = joined(table_lr=2.0, follow=False)
    schedule = torch.optim.lr_scheduler.ExponentialLR(dense, 0.5)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    assert kernel.rates == [2.0]


def test_state_goes_back_and_forth():
    optimizer, dense, weight, table, _ = joined()
    dense.param_groups[0]["momentum"] = 0.9
    for _ in range(2):
        backward(weight, table)
        optimizer.step()
    other, other_dense, *_ = joined()
    other.load_state_dict(optimizer.state_dict())
    assert other.groups[0].steps == 2
    assert other_dense.param_groups[0]["momentum"] == 0.9
    assert other.param_groups[0] is other_dense.param_groups[0]


def test_state_of_other_tables_is_refused():
    optimizer, *_ = joined()
    state = optimizer.state_dict()
    state["tables"][0]["tables"] = ["t", "u"]
    with pytest.raises(ValueError, match=r"groups \[\['t', 'u'\]\], now \[\['t'\]\]"):
        optimizer.load_state_dict(state)


def test_state_from_elsewhere_is_refused():
    optimizer, dense, *_ = joined()
    with pytest.raises(ValueError, match="written without TorchRecStrategy"):
        optimizer.load_state_dict(dense.state_dict())


def test_row_wise_state_is_named_by_table():
    table = nn.Parameter(torch.ones(3, 2))
    spec = RowWiseAdagrad(lr=1.0)
    group = TableGroup(spec, ["t"], {"t": (table, spec.init_state(table))})
    assert {key: value.shape for key, value in group.state().items()} == {"t/sum": (3,)}
    table.grad = torch.ones(3, 2)
    group.step(1.0)
    group.reset()
    assert group.state()["t/sum"].tolist() == [0.0] * 3
