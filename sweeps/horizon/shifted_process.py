"""A Gaussian process over shifted settings and log tokens, with its hyperparameters averaged.

With t = ln(tokens / reference), the excess of a loss over the irreducible loss E is

    ln(L - E) = ln d - a t + exp(-w t) (bowl(z) + g(z) + u(x)) + offsets of words + own(x, t) + noise

x are coordinates of settings and z = x - e t the same moved against the shift of the optimum, so `bowl` and `g` see a
short run of small batch beside the long run of large batch it resembles. `u` does not move: a limit of stability, for
instance. `own` is a setting's own deviation, correlated between lengths. `bowl` is a quadratic with Gaussian
coefficients, `g` and `u` are Matern 5/2, and the power law `a`, the bowl and the offsets are integrated in closed form.
The other hyperparameters have priors; their posterior is a few points around its mode, drawn by Laplace's
approximation and weighted by the true posterior.

An observation far above the valley says little of the valley: its variance grows with its distance, and its loss is
cut off (divergences). All of it depends on differences of losses only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

_SQRT5 = math.sqrt(5.0)
_NUM_POINTS = 16
"""Points of the posterior of the hyperparameters."""
_JITTER = 1e-8


@dataclass(frozen=True)
class _Prior:
    mean: float
    sd: float


_LOG_EXCESS = _Prior(0.0, 1.2)
"""ln d: the best known loss is about 1 nat above the irreducible loss, within a factor of 3."""
_POWER = _Prior(0.28, 0.1)
"""a: arXiv:2203.15556 has 0.28 for tokens."""
_BEND_SD = 0.1
"""Of the coefficient of t^2: losses do not follow the power law exactly, so a level far ahead is uncertain."""
_SHRINKAGE = _Prior(0.0, 0.15)
"""w: differences may shrink faster (or more slowly) than the excess itself."""
_LEVEL_SD = 0.3
_SLOPE_SD = 0.15
_CURVATURE = _Prior(0.05, 0.05)
"""Of settings with a published shift. Relative excess per squared coordinate; others: 0 +- 0.05."""
_PRODUCT = _Prior(-0.03, 0.04)
"""Of learning rate and batch size: larger batches want larger rates."""
_WORD_SD = 0.1
_WORD_FACTOR = 0.7
"""Correlation of `g` and `u` between two words of one setting."""
_LOG_LENGTH = _Prior(math.log(2.0), 0.5)
_LOG_MOVED = _Prior(math.log(0.1), 0.8)
_LOG_UNMOVED = _Prior(math.log(0.02), 1.0)
_LOG_OWN = _Prior(math.log(0.005), 1.0)
_LOG_NOISE = _Prior(math.log(0.005), 1.0)
_GIVEN_NOISE_SD = 0.2
_OWN_RANGE = 2.0
"""Factor e^2 of tokens over which a setting's own deviation decorrelates."""
_FREE, _DOUBT, _CUT = 0.15, 0.6, 1.5
"""Relative excess over the valley that is taken at face value; growth of the deviation beyond; where losses are cut."""


@dataclass(frozen=True)
class Coordinates:
    """Settings at lengths, as the process sees them."""

    x_NK: np.ndarray
    """Numbers: one column an axis with a shift."""
    words_NC: np.ndarray
    """Indices of words: one column an axis of words."""
    t_N: np.ndarray
    """Natural logarithm of tokens."""

    def __len__(self) -> int:
        return len(self.t_N)

    def with_others(self, others: "Coordinates") -> "Coordinates":
        """These and then the others."""
        pairs = zip(self._arrays(), others._arrays(), strict=True)
        return Coordinates(*(np.concatenate(pair) for pair in pairs))

    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.x_NK, self.words_NC, self.t_N


class _Pairs:
    """All that the kernels need to know of pairs of points; independent of the hyperparameters."""

    def __init__(self, a: Coordinates, b: Coordinates) -> None:
        self.dx_KAB = a.x_NK.T[:, :, None] - b.x_NK.T[:, None, :]
        self.dt_AB = a.t_N[:, None] - b.t_N[None, :]
        alike_ABC = a.words_NC[:, None, :] == b.words_NC[None, :, :]
        self.factor_AB = _WORD_FACTOR ** (~alike_ABC).sum(-1)
        self.offsets_AB = _WORD_SD**2 * alike_ABC.sum(-1)
        equal_AB = alike_ABC.all(-1) & (np.abs(self.dx_KAB) < 1e-9).all(0)
        self.own_AB = equal_AB * np.exp(-np.abs(self.dt_AB) / _OWN_RANGE)


class ShiftedProcess:
    """The posterior of the loss over settings and length.

    Args:
        known: Coordinates of N losses.
        losses_N: In nats; NaN and infinity stand for divergence.
        shifts: Prior mean and standard deviation of the shift of each of the K axes.
        bowls: Axes with a published shift, which are expected to have a valley. Two of them: learning rate and batch.
        noise_sd: Standard deviation between seeds in nats; None: learnt.

    Raises:
        ValueError: No loss is finite.
    """

    def __init__(
        self,
        known: Coordinates,
        losses_N: np.ndarray,
        *,
        shifts: Sequence[tuple[float, float]],
        bowls: Sequence[int],
        noise_sd: float | None,
    ) -> None:
        finite = np.isfinite(losses_N)
        if not finite.any():
            raise ValueError("no loss is finite")
        self._known, self._num_axes = known, known.x_NK.shape[1]
        self._best_loss = float(losses_N[finite].min())
        self._t0 = float(known.t_N[finite][losses_N[finite].argmin()])
        self._set_priors(shifts, bowls, noise_sd)
        self._cut_losses(losses_N)
        self._pairs = _Pairs(known, known)
        self._fit()

    @property
    def shifts(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of the shift of each axis."""
        points = self._points[:, self._shift_slice]
        mean = self._weights @ points
        return [
            (float(m), float(math.sqrt(max(v, s))))
            for m, v, s in zip(
                mean, self._weights @ (points - mean) ** 2, self._laplace_variance[self._shift_slice], strict=True
            )
        ]

    @property
    def noise_sd(self) -> float:
        """Standard deviation between seeds in nats."""
        return math.exp(float(self._weights @ self._points[:, -2]))

    def predict(self, wanted: Coordinates) -> tuple[np.ndarray, np.ndarray]:
        """Mean [M] and covariance [M, M] of the expected losses, in nats, without the noise of a seed."""
        across, among = _Pairs(wanted, self._known), _Pairs(wanted, wanted)
        means, covariances = [], []
        for point, (factor, solved) in zip(self._points, self._solved, strict=True):
            features = self._features(wanted, point)
            kernel = self._kernel(across, wanted, self._known, point, features)
            projected = solve_triangular(factor, kernel.T, lower=True, check_finite=False)
            log_mean = features @ self._feature_mean + point[0] + projected.T @ solved
            log_covariance = self._kernel(among, wanted, wanted, point, features) - projected.T @ projected
            # Moments of a log-normal distribution.
            mean = np.exp(np.minimum(log_mean + np.diag(log_covariance) / 2, 5.0))
            means.append(self._best_loss - math.exp(point[0]) + mean)
            covariances.append(np.outer(mean, mean) * np.expm1(np.clip(log_covariance, -5.0, 5.0)))
        mean_M = self._weights @ np.array(means)
        apart = np.array(means) - mean_M
        within = np.tensordot(self._weights, np.array(covariances), 1)
        return mean_M, within + (apart * self._weights[:, None]).T @ apart

    def mean_at_mode(self, wanted: Coordinates) -> np.ndarray:
        """Expected losses [M] under the most probable hyperparameters: cheap, for searches."""
        point, (factor, solved) = self._points[0], self._solved[0]
        features = self._features(wanted, point)
        kernel = self._kernel(_Pairs(wanted, self._known), wanted, self._known, point, features)
        weights = solve_triangular(factor, solved, lower=True, trans=1, check_finite=False)
        excess = np.exp(np.minimum(features @ self._feature_mean + point[0] + kernel @ weights, 5.0))
        return np.asarray(self._best_loss - math.exp(point[0]) + excess)

    def _set_priors(self, shifts: Sequence[tuple[float, float]], bowls: Sequence[int], noise_sd: float | None) -> None:
        axes = range(self._num_axes)
        noise = _LOG_NOISE if not noise_sd else _Prior(math.log(noise_sd), _GIVEN_NOISE_SD)
        priors = [_LOG_EXCESS, *(_Prior(*shift) for shift in shifts), *(_LOG_LENGTH for _ in axes)]
        priors += [_LOG_MOVED, _LOG_UNMOVED, _LOG_OWN, noise, _SHRINKAGE]
        self._prior_mean = np.array([prior.mean for prior in priors])
        self._prior_sd = np.array([prior.sd for prior in priors])
        self._shift_slice = slice(1, 1 + self._num_axes)
        self._pair = tuple(bowls) if len(bowls) == 2 else None
        curved = [_CURVATURE if axis in bowls else _Prior(0.0, _CURVATURE.sd) for axis in axes]
        features = [_Prior(0.0, _LEVEL_SD), _Prior(-_POWER.mean, _POWER.sd), _Prior(0.0, _BEND_SD)]
        features += [_Prior(0.0, _SLOPE_SD) for _ in axes] + curved + ([_PRODUCT] if self._pair else [])
        self._feature_mean = np.array([prior.mean for prior in features])
        self._feature_variance = np.array([prior.sd**2 for prior in features])

    def _cut_losses(self, losses_N: np.ndarray) -> None:
        """Sets the losses after the cut, their further variances, and the middle of the bowl."""
        excess = math.exp(_LOG_EXCESS.mean)
        dt_N = self._known.t_N - self._t0
        cut_N = self._best_loss - excess + excess * np.exp(_CUT - _POWER.mean * dt_N)
        losses_N = np.where(np.isfinite(losses_N), np.minimum(losses_N, cut_N), cut_N)
        above_N = np.log((losses_N - self._best_loss + excess) / excess) + _POWER.mean * dt_N
        self._losses_N = losses_N
        self._doubt_N = (_DOUBT * np.maximum(0.0, above_N - _FREE)) ** 2
        near_N = np.exp(-(above_N - above_N.min()) / 0.1)
        moved_NK = self._known.x_NK - dt_N[:, None] * self._prior_mean[self._shift_slice]
        self._middle_K = near_N @ moved_NK / near_N.sum()

    def _features(self, at: Coordinates, point: np.ndarray) -> np.ndarray:
        dt = at.t_N - self._t0
        z_KN = (at.x_NK - dt[:, None] * point[self._shift_slice] - self._middle_K).T
        size = np.exp(-point[-1] * dt)
        product = [z_KN[self._pair[0]] * z_KN[self._pair[1]] * size] if self._pair else []
        return np.stack([np.ones_like(dt), dt, dt**2, *(z_KN * size), *(z_KN**2 * size), *product], axis=1)

    def _feature_slopes(self, point: np.ndarray, features: np.ndarray) -> list[np.ndarray]:
        """Derivatives of the features at the known points by each shift and by the shrinkage."""
        at, axes = self._known, self._num_axes
        dt = at.t_N - self._t0
        z_KN = (at.x_NK - dt[:, None] * point[self._shift_slice] - self._middle_K).T
        scaled = -dt * np.exp(-point[-1] * dt)
        slopes = []
        for axis in range(axes):
            slope = np.zeros_like(features)
            slope[:, 3 + axis] = scaled
            slope[:, 3 + axes + axis] = 2 * z_KN[axis] * scaled
            if self._pair and axis in self._pair:
                slope[:, -1] = z_KN[self._pair[1 - self._pair.index(axis)]] * scaled
            slopes.append(slope)
        shrinking = -dt[:, None] * features
        shrinking[:, :3] = 0.0
        return [*slopes, shrinking]

    def _kernel(
        self, pairs: _Pairs, a: Coordinates, b: Coordinates, point: np.ndarray, features_of_a: np.ndarray
    ) -> np.ndarray:
        features_of_b = features_of_a if a is b else self._features(b, point)
        length_K, (moved, unmoved, own) = self._unpacked(point)
        shift_K = point[self._shift_slice]
        size = np.exp(-point[-1] * (a.t_N - self._t0))[:, None] * np.exp(-point[-1] * (b.t_N - self._t0))[None, :]
        z = (pairs.dx_KAB - shift_K[:, None, None] * pairs.dt_AB) / length_K[:, None, None]
        x = pairs.dx_KAB / length_K[:, None, None]
        smooth = moved * _matern((z**2).sum(0)) + unmoved * _matern((x**2).sum(0))
        kernel = (features_of_a * self._feature_variance) @ features_of_b.T + smooth * size * pairs.factor_AB
        return np.asarray(kernel + pairs.offsets_AB + own * pairs.own_AB)

    def _unpacked(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Length scales of the axes, and the variances of `g`, `u` and `own`."""
        axes = self._num_axes
        return np.exp(point[1 + axes : 1 + 2 * axes]), np.exp(2 * point[1 + 2 * axes : 4 + 2 * axes])

    def _solve(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Cholesky factor, whitened residuals, and the negative log posterior."""
        excess = self._losses_N - self._best_loss + math.exp(point[0])
        features = self._features(self._known, point)
        kernel = self._kernel(self._pairs, self._known, self._known, point, features)
        kernel[np.diag_indices(len(kernel))] += np.exp(2 * point[-2]) / excess**2 + self._doubt_N + _JITTER
        factor = np.linalg.cholesky(kernel)
        residual = np.log(excess) - features @ self._feature_mean - point[0]
        solved = solve_triangular(factor, residual, lower=True, check_finite=False)
        value = solved @ solved / 2 + np.log(np.diag(factor)).sum() + np.log(excess).sum()
        return factor, solved, float(value + (((point - self._prior_mean) / self._prior_sd) ** 2).sum() / 2)

    def _posterior(self, whitened: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log posterior of the hyperparameters and its gradient, in prior deviations."""
        point = self._prior_mean + whitened * self._prior_sd
        axes, pairs, dt = self._num_axes, self._pairs, self._known.t_N - self._t0
        length_K, (moved, unmoved, own) = self._unpacked(point)
        d = math.exp(point[0])
        excess = self._losses_N - self._best_loss + d
        features = self._features(self._known, point)
        slopes = self._feature_slopes(point, features)
        shrunk = np.exp(-point[-1] * dt)
        size = np.outer(shrunk, shrunk) * pairs.factor_AB
        z = (pairs.dx_KAB - point[self._shift_slice][:, None, None] * pairs.dt_AB) / length_K[:, None, None]
        x = pairs.dx_KAB / length_K[:, None, None]
        g, g_slope = _matern_and_slope((z**2).sum(0))
        u, u_slope = _matern_and_slope((x**2).sum(0))
        smooth_g, smooth_u = moved * size * g, unmoved * size * u
        noise = np.exp(2 * point[-2]) / excess**2
        kernel = (features * self._feature_variance) @ features.T + smooth_g + smooth_u + pairs.offsets_AB
        kernel += own * pairs.own_AB
        kernel[np.diag_indices(len(kernel))] += noise + self._doubt_N + _JITTER
        factor = np.linalg.cholesky(kernel)
        inverse = dpotri(factor, lower=1)[0]
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        residual = np.log(excess) - features @ self._feature_mean - point[0]
        alpha = inverse @ residual
        value = residual @ alpha / 2 + np.log(np.diag(factor)).sum() + np.log(excess).sum() + whitened @ whitened / 2
        # d value = sum(pull * d kernel) + alpha . d residual
        pull = (inverse - np.outer(alpha, alpha)) / 2
        on_noise = np.diag(pull) * noise
        on_features = pull @ (features * self._feature_variance)
        on_g, on_u = pull * (moved * size * g_slope), pull * (unmoved * size * u_slope)
        gradient = np.empty_like(point)
        gradient[0] = alpha @ (d / excess - 1) + (d / excess).sum() - 2 * (on_noise * d / excess).sum()
        for axis in range(axes):
            by_shift = -2 * np.vdot(on_g * pairs.dt_AB, z[axis]) / length_K[axis]
            gradient[1 + axis] = (
                2 * np.vdot(on_features, slopes[axis]) - alpha @ (slopes[axis] @ self._feature_mean) + by_shift
            )
            gradient[1 + axes + axis] = -2 * np.vdot(on_g, z[axis] ** 2) - 2 * np.vdot(on_u, x[axis] ** 2)
        gradient[-5], gradient[-4] = 2 * np.vdot(pull, smooth_g), 2 * np.vdot(pull, smooth_u)
        gradient[-3], gradient[-2] = 2 * own * np.vdot(pull, pairs.own_AB), 2 * on_noise.sum()
        gradient[-1] = 2 * np.vdot(on_features, slopes[-1]) - alpha @ (slopes[-1] @ self._feature_mean)
        gradient[-1] -= 2 * (dt @ (pull * (smooth_g + smooth_u)).sum(1))
        return float(value), gradient * self._prior_sd + whitened

    def _fit(self) -> None:
        size = len(self._prior_mean)
        found = minimize(
            self._posterior,
            np.zeros(size),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-4.0, 4.0)] * size,
            options={"maxiter": 40, "ftol": 1e-6, "gtol": 1e-3},
        )
        mode, step = found.x, 0.02
        at_mode = self._posterior(mode)[1]
        hessian = np.array([(self._posterior(mode + step * row)[1] - at_mode) / step for row in np.eye(size)])
        values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
        # The prior alone has curvature 1 in every direction.
        values = np.maximum(values, 0.7)
        self._laplace_variance = np.square(vectors) @ (1 / values) * self._prior_sd**2
        draws = _standard_draws(_NUM_POINTS, size)
        whitened = np.clip(mode + draws @ (vectors / np.sqrt(values)).T, -4.0, 4.0)
        self._points = self._prior_mean + whitened * self._prior_sd
        solved = [self._solve(point) for point in self._points]
        self._solved = [(factor, residuals) for factor, residuals, _ in solved]
        proposal = (((whitened - mode) @ vectors) ** 2 * values).sum(1) / 2
        log_weights = proposal - np.array([value for _, _, value in solved])
        weights = np.exp(np.maximum(log_weights - log_weights.max(), -6.0))
        # Truncated importance weights (Ionides 2008): one point far from the mode may not take all.
        weights = np.minimum(weights, 4 * weights.mean())
        self._weights = weights / weights.sum()


def _matern(squared: np.ndarray) -> np.ndarray:
    root = _SQRT5 * np.sqrt(squared)
    return np.asarray((1 + root + 5 / 3 * squared) * np.exp(-root))


def _matern_and_slope(squared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matern 5/2 and its derivative by the squared distance."""
    root = _SQRT5 * np.sqrt(squared)
    fall = np.exp(-root)
    return (1 + root + 5 / 3 * squared) * fall, -5 / 6 * (1 + root) * fall


def _standard_draws(count: int, size: int) -> np.ndarray:
    """Standard normal draws [count, size] in opposite pairs, after a zero; always the same."""
    half = np.random.default_rng(0).standard_normal(((count - 1) // 2 + 1, size))
    draws = np.concatenate([np.zeros((1, size)), np.stack([half, -half], axis=1).reshape(-1, size)])
    return draws[:count]
