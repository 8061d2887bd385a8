"""Softmax over the target and sampled negatives, corrected for how they were sampled.

R rows (one (user, target) pair each), N negatives.
"""

import math

import torch
from torch import Tensor

from lightning_mvrec.losses._scores import (
    is_target,
    negative_scores,
    repeat_parts,
    require_negatives,
    target_scores,
    weighted,
)
from lightning_mvrec.losses.base import Loss, LossInput


class SampledSoftmaxLoss(Loss):
    """Estimate the full softmax from ``N`` negatives drawn with log-probability ``log q``.

    A row's loss is ``-s + log(exp(s) + sum_j exp(s_j - log(N q_j)))`` with scores ``s`` of the target and ``s_j`` of
    the negatives, each divided by the temperature; a negative that is the row's own target is left out. The sum
    estimates that over all other items without bias, so the loss approaches the full softmax as ``N`` grows. Without
    the correction, items that are drawn often are pushed down too far.

    The classic form (Bengio & Senécal 2008; Yi et al., RecSys 2019) also subtracts the target's ``log(N q)``:
    ``correct_target``. For in-batch negatives either is in use; see Khrylchenko et al., "Correcting the LogQ
    Correction" (RecSys 2025).

    Args:
        temperature: What scores are divided by, above 0.
        correct: Whether to correct for ``log q``; False: a plain softmax over target and negatives.
        correct_target: Whether the target's score is corrected too.

    Shape:
        - output: scalar, ``sum_R(weight * loss) / total_weight``.

    Raises:
        ValueError: If an argument is out of its range, or the batch lacks negatives or their log-probabilities.

    Example:
        >>> one, items = torch.ones(1), torch.zeros(3, 1)
        >>> inputs = LossInput(one[:, None], items, torch.tensor([0]), one, one, 1.0, negative=torch.tensor([1, 2]))
        >>> round(SampledSoftmaxLoss(correct=False)(inputs).item(), 4)  # log(3)
        1.0986
    """

    reads_repeats = True

    def __init__(self, temperature: float = 1.0, correct: bool = True, correct_target: bool = False) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if correct_target and not correct:
            raise ValueError("correct_target must be False where correct is False, got True")
        self.temperature = temperature
        self.correct = correct
        self.correct_target = correct_target

    def forward(self, inputs: LossInput) -> Tensor:
        """Return the loss."""
        negative = require_negatives(inputs, self)
        target_R = target_scores(inputs) / self.temperature
        negative_RN = negative_scores(inputs, negative) / self.temperature
        # A large negative number, not -inf: its gradient is 0 even where a row's every negative is its target.
        negative_RN = negative_RN.masked_fill(is_target(inputs, negative), torch.finfo(negative_RN.dtype).min)
        corrected_R = target_R
        if self.correct:
            log_count = math.log(max(negative.shape[-1], 1))
            negative_RN = negative_RN - self._log_q(inputs.log_q_negative, "negatives").to(negative_RN) - log_count
            if self.correct_target:
                corrected_R = target_R - self._log_q(inputs.log_q_R, "targets").to(target_R) - log_count
        sum_R = torch.cat([corrected_R[:, None], negative_RN], dim=1).logsumexp(1)
        if inputs.repeats is not None:
            if self.correct_target:
                raise ValueError("correct_target must be False where the model has a repeat term, got True")
            mass_R, own_R = repeat_parts(inputs, self.temperature)
            sum_R, corrected_R = torch.logaddexp(sum_R, mass_R), torch.logaddexp(corrected_R, own_R)
        return weighted(sum_R - corrected_R, inputs)

    @staticmethod
    def _log_q(log_q: Tensor | None, of_what: str) -> Tensor:
        if log_q is None:
            raise ValueError(
                f"SampledSoftmaxLoss(correct=True) needs the log-probabilities of the {of_what}, got a batch without: "
                "use a sampler of `negatives` that gives them, or set `correct: false`"
            )
        return log_q
