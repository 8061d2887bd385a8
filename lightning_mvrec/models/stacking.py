"""One score out of several models' scores, weighed on data that none of them was trained on.

n targets, M models.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.optimize import minimize


class Stacking:
    """A weighted sum of scores; weights by logistic regression on labels 0 and 1, by least squares on numbers.

    Wolpert, "Stacked Generalization" (Neural Networks 1992), with a linear second level. Scores are standardised with
    the fitting targets' mean and deviation first, so that weights can be compared.

    Args:
        binary: Whether labels are 0 or 1 and the sum is a logit.
        penalty: Half of this times the squared weights is added to the summed loss, at least 0: with few targets,
            models that say the same share the weight.

    Attributes:
        weights: By model, once fitted, what one standard deviation of its score counts for.

    Raises:
        ValueError: If ``penalty`` is negative.

    Example:
        >>> good, noise = np.array([0.0, 1.0, 2.0, 3.0]), np.array([1.0, -1.0, -1.0, 1.0])
        >>> stacked = Stacking(binary=False, penalty=0.0).fit({"good": good, "noise": noise}, 2 * good + 1)
        >>> stacked.predict({"good": good, "noise": noise}).round(3).tolist()
        [1.0, 3.0, 5.0, 7.0]
    """

    weights: dict[str, float]

    def __init__(self, binary: bool = True, penalty: float = 1.0) -> None:
        if penalty < 0:
            raise ValueError(f"penalty must be at least 0, got {penalty}")
        self.binary = binary
        self.penalty = penalty

    def fit(self, scores: Mapping[str, np.ndarray], label: np.ndarray, weight: np.ndarray | None = None) -> Stacking:
        """Weigh models.

        Args:
            scores: By model, ``(n,)``.
            label: ``(n,)``.
            weight: ``(n,)``, at least 0; None: 1 each.

        Raises:
            ValueError: If there is no model, or no target of weight above 0.
        """
        weight_n = np.ones(len(label)) if weight is None else weight.astype(np.float64)
        if not scores or not weight_n.sum() > 0:
            raise ValueError(f"stacking needs models and targets, got {list(scores)} and weights of {weight_n.sum()}")
        raw_nM = self._matrix(scores)
        self._mean_M = np.average(raw_nM, axis=0, weights=weight_n)
        self._deviation_M = np.sqrt(np.average((raw_nM - self._mean_M) ** 2, axis=0, weights=weight_n))
        self._deviation_M[self._deviation_M == 0] = 1.0  # a model that says the same of everything gets no weight
        x_nM, y_n = (raw_nM - self._mean_M) / self._deviation_M, label.astype(np.float64)
        start = np.zeros(x_nM.shape[1] + 1)
        found = minimize(self._objective, start, args=(x_nM, y_n, weight_n), jac=True, method="L-BFGS-B").x
        self._weight_M, self._intercept = found[:-1], float(found[-1])
        self.weights = dict(zip(scores, self._weight_M.tolist(), strict=True))
        return self

    def predict(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return ``(n,)`` sums: logits where labels are 0 and 1.

        Raises:
            ValueError: If the models are not those of :meth:`fit`, in their order.
        """
        if list(scores) != list(self.weights):
            raise ValueError(f"scores must be those of {list(self.weights)}, got {list(scores)}")
        return (self._matrix(scores) - self._mean_M) / self._deviation_M @ self._weight_M + self._intercept

    def _matrix(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.stack([np.asarray(score, dtype=np.float64) for score in scores.values()], axis=1)

    def _objective(
        self, values: np.ndarray, x_nM: np.ndarray, y_n: np.ndarray, weight_n: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """Penalised loss and its gradient."""
        sum_n = x_nM @ values[:-1] + values[-1]
        if self.binary:
            loss = float(weight_n @ (np.logaddexp(0.0, sum_n) - y_n * sum_n))
            slope_n = weight_n * (0.5 * (1 + np.tanh(sum_n / 2)) - y_n)
        else:
            loss = float(0.5 * weight_n @ (sum_n - y_n) ** 2)
            slope_n = weight_n * (sum_n - y_n)
        penalty = self.penalty * np.append(values[:-1], 0.0)
        return loss + 0.5 * float(penalty @ values), np.append(x_nM.T @ slope_n, slope_n.sum()) + penalty
