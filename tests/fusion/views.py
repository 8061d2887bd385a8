"""View states made by hand, for tests of fusions."""

import torch

from lightning_mvrec.fusion import ViewState, ViewStates


def make_states(present_RV, names, embedding_dim=4, seed=0, age=None, requires_grad=False):
    """Make random states of ``len(present_RV)`` rows, one user each; absent ones are 0, as the contract says."""
    generator = torch.Generator().manual_seed(seed)
    present_RV = torch.as_tensor(present_RV, dtype=torch.bool).reshape(-1, len(names))
    rows = present_RV.shape[0]
    views = {}
    for index, name in enumerate(names):
        present_R = present_RV[:, index]
        state_RD = torch.randn(rows, embedding_dim, generator=generator) * present_R[:, None]
        state_RD.requires_grad_(requires_grad)
        age_R = torch.full((rows,), 60.0 if age is None else age) * present_R
        views[name] = ViewState(
            state_RD=state_RD,
            present_R=present_R,
            age_R=age_R,
            asof_R=present_R.long(),
            steps_BTD=state_RD[:, None].detach(),
            lengths_B=present_R.long(),
            times_BT=torch.zeros(rows, 1, dtype=torch.int64),
        )
    return ViewStates(views, torch.arange(rows))
