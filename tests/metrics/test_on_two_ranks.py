"""Every metric on two ranks with uneven data equals the same metric on one."""

import pytest
import torch
import torch.distributed as dist

from lightning_mvrec.metrics import AUC, MAE, MRR, NDCG, RMSE, Coverage, GroupedAUC, HitRate, LogLoss, Recall
from tests.distributed.launch import run_ranks

GENERATOR = torch.Generator().manual_seed(7)
RANK = torch.randint(1, 30, (37,), generator=GENERATOR)
SCORE = torch.randint(0, 9, (37,), generator=GENERATOR) / 9
LABEL = (torch.rand(37, generator=GENERATOR) < 0.4).float()
WEIGHT = torch.randint(0, 3, (37,), generator=GENERATOR).float()
GROUP = torch.randint(0, 5, (37,), generator=GENERATOR)
TOP = torch.randint(0, 50, (37, 4), generator=GENERATOR)


def fill(metrics, rows):
    for metric in metrics:
        if isinstance(metric, (NDCG, HitRate, Recall, MRR)):
            metric.update(RANK[rows], WEIGHT[rows])
        elif isinstance(metric, Coverage):
            metric.update(TOP[rows], WEIGHT[rows])
        elif isinstance(metric, GroupedAUC):
            metric.update(SCORE[rows], LABEL[rows], WEIGHT[rows], group=GROUP[rows])
        else:
            metric.update(SCORE[rows], LABEL[rows], WEIGHT[rows])


def all_metrics():
    lists = [metric(k=10) for metric in (NDCG, HitRate, Recall, MRR)]
    return [*lists, Coverage(50, k=3), AUC(), GroupedAUC(), LogLoss(), MAE(), RMSE()]


@pytest.mark.parametrize("batches", [[[(0, 5), (5, 7)], [(7, 37)]], [[], [(0, 20), (20, 37)]], [[(0, 37)], [(0, 0)]]])
def test_uneven_ranks_join_to_the_value_of_all_rows(batches):
    """A batch or two against one, a rank that never updates, a rank with an empty batch."""

    def on_rank():
        metrics = all_metrics()
        for start, stop in batches[dist.get_rank()]:
            fill(metrics, slice(start, stop))
        return [(metric.name, metric.compute().item()) for metric in metrics]

    whole = all_metrics()
    fill(whole, slice(None))
    expected = {metric.name: metric.compute().item() for metric in whole}
    for values in run_ranks(on_rank, 2):
        assert dict(values) == pytest.approx(expected, abs=1e-12)
