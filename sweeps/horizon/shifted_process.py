"""A Gaussian process over shifted settings and log tokens, averaged over its hyperparameters.

With t = ln(tokens / reference), a loss in nats is

    L = level(t) + exp(-w t) (bowl(z) + g(z) + u(x) + offsets of words) + own(x, t) + noise

x are coordinates of settings and z = x - e t the same moved back along the shift of the optimum, so `bowl` and `g` see
a short run of a small batch beside the long run of a large batch that it resembles. `u` does not move (a limit of
stability, for instance). `own` is a setting's own deviation, correlated between lengths. `level` is a power law with an
unknown exponent, taken as the Gaussian process with the same mean and covariance. `bowl` is a quadratic with Gaussian
coefficients; `g` and `u` are Matern 5/2. The other hyperparameters (e, w, size of the power law, length scales,
deviations) have priors, and their posterior is a few points around its mode: Laplace's approximation, weighted by the
true posterior.

A loss far above the valley says little of the valley: its variance grows with its height, and it is cut off
(divergences). A loss that the others contradict loses its weight. All of it depends on differences of losses only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from scipy.special import ndtri

_SQRT5 = math.sqrt(5.0)
_NUM_POINTS = 16
"""Points of the posterior of the hyperparameters."""
_JITTER = 1e-8


@dataclass(frozen=True)
class _Prior:
    mean: float
    sd: float


_LOG_SIZE = _Prior(math.log(0.8), 1.0)
"""Of the level above the irreducible loss, at the best known loss, in nats."""
_POWER = _Prior(0.28, 0.12)
"""Of the level; arXiv:2203.15556 has 0.28 for tokens."""
_QUANTILES = (np.arange(12) + 0.5) / 12
_BEND_SD = 0.03
"""Of the coefficient of t^2, as a share of that size: losses do not follow a power law exactly."""
_OFFSET_SD = 1.0
_SHRINKAGE = _Prior(0.25, 0.15)
"""w: a bowl that shrinks with the excess over the irreducible loss has the exponent of the level."""
_SLOPE_SD = 0.15
_CURVATURE = _Prior(0.05, 0.05)
"""Of settings with a published shift, in nats per squared coordinate; others: 0 +- 0.05."""
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
"""Nats over the valley that are taken at face value; growth of the deviation beyond; height where losses are cut."""
_SAME_LENGTH = 0.18
"""Largest |t| between losses that share a valley."""
_CONTRADICTED = 3.0
"""Deviations from the prediction of all others beyond which a loss loses its weight."""


@dataclass(frozen=True)
class Coordinates:
    """Settings at lengths, as the process sees them."""

    x_NK: np.ndarray
    """Numbers: one column an axis with a shift."""
    words_NC: np.ndarray
    """Indices of words: one column an axis of words."""
    t_N: np.ndarray
    """Natural logarithm of tokens."""

    def __getitem__(self, rows: np.ndarray) -> "Coordinates":
        return Coordinates(self.x_NK[rows], self.words_NC[rows], self.t_N[rows])


class _Pairs:
    """All that kernels need to know of pairs of points; independent of the hyperparameters."""

    def __init__(self, a: Coordinates, b: Coordinates) -> None:
        dx_KAB = a.x_NK.T[:, :, None] - b.x_NK.T[:, None, :]
        dt_AB = a.t_N[:, None] - b.t_N[None, :]
        # Squared distances are linear in these, with or without a shift: dx^2 and dx dt of each axis, dt^2.
        self.squares_QAB = np.concatenate([dx_KAB**2, dx_KAB * dt_AB, dt_AB[None] ** 2])
        alike_ABC = a.words_NC[:, None, :] == b.words_NC[None, :, :]
        self.factor_AB = _WORD_FACTOR ** (~alike_ABC).sum(-1)
        self.offsets_AB = _WORD_SD**2 * alike_ABC.sum(-1)
        equal_AB = alike_ABC.all(-1) & (np.abs(dx_KAB) < 1e-9).all(0)
        self.own_AB = equal_AB * np.exp(-np.abs(dt_AB) / _OWN_RANGE)


@dataclass(frozen=True)
class _Smooth:
    """Kernel matrices of `g`, `u` and the offsets of words, with what their derivatives need."""

    g_AB: np.ndarray
    u_AB: np.ndarray
    words_AB: np.ndarray
    g_slope_AB: np.ndarray
    """Derivative of `g_AB` by the squared distance."""
    u_slope_AB: np.ndarray


@dataclass(frozen=True)
class Seen:
    """Points with their posterior under each of the S points of the hyperparameters."""

    at: Coordinates
    features: tuple[np.ndarray, ...]
    """Per hyperparameter point, [M, F]."""
    projected: tuple[np.ndarray, ...]
    """Per hyperparameter point, [N, M]: what the known losses explain."""
    means_SM: np.ndarray
    mean_M: np.ndarray
    """In nats, over all S."""
    doubt_M: np.ndarray
    """Variance of points far above the valley."""


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
        self._level_mean_N, self._level_N = self._level(known)
        self._cut_losses(losses_N)
        self._pairs = _Pairs(known, known)
        self._level_NN = self._level_N @ self._level_N.T
        mode = self._mode(np.zeros(len(self._prior_mean)))
        if self._doubt_contradicted(mode):
            mode = self._mode(mode)
        self._average(mode)

    @property
    def shifts(self) -> list[tuple[float, float]]:
        """Mean and standard deviation of the shift of each axis."""
        points = self._points[:, self._shift_slice]
        mean = self._weights @ points
        variance = np.maximum(self._weights @ (points - mean) ** 2, self._laplace_variance[self._shift_slice])
        return list(zip(mean.tolist(), np.sqrt(variance).tolist(), strict=True))

    @property
    def noise_sd(self) -> float:
        """Standard deviation between seeds in nats."""
        return math.exp(float(self._weights @ self._points[:, -2]))

    def see(self, at: Coordinates) -> Seen:
        """The points with their expected losses in nats."""
        pairs = _Pairs(at, self._known)
        level_mean, level = self._level(at)
        level_MN = level @ self._level_N.T
        all_features, all_projected, means = [], [], []
        for point, (factor, solved) in zip(self._points, self._solved, strict=True):
            features = self._features(at, point)
            kernel = self._kernel(pairs, at, self._known, point, features, self._features(self._known, point), level_MN)
            projected = solve_triangular(factor, kernel.T, lower=True, check_finite=False)
            all_features.append(features)
            all_projected.append(projected)
            means.append(
                self._best_loss
                + features @ self._feature_mean
                + math.exp(point[-3]) * level_mean
                + projected.T @ solved
            )
        means_SM = np.array(means)
        mean_M = self._weights @ means_SM
        above_M = mean_M - self._valley(at.t_N)
        doubt_M = (_DOUBT * np.maximum(0.0, above_M - _FREE)) ** 2
        return Seen(at, tuple(all_features), tuple(all_projected), means_SM, mean_M, doubt_M)

    def covariance(self, a: Seen, b: Seen) -> np.ndarray:
        """Covariance [A, B] of expected losses, without the noise of a seed."""
        pairs = _Pairs(a.at, b.at)
        level_AB = self._level(a.at)[1] @ self._level(b.at)[1].T
        total = np.zeros(level_AB.shape)
        for index, (point, weight) in enumerate(zip(self._points, self._weights, strict=True)):
            kernel = self._kernel(pairs, a.at, b.at, point, a.features[index], b.features[index], level_AB)
            total += weight * (kernel - a.projected[index].T @ b.projected[index])
        total += (self._weights[:, None] * (a.means_SM - a.mean_M)).T @ (b.means_SM - b.mean_M)
        return np.asarray(total + np.diag(a.doubt_M) if a is b else total)

    def variance(self, seen: Seen) -> np.ndarray:
        """Diagonal [M] of `covariance(seen, seen)`."""
        level_M = (self._level(seen.at)[1] ** 2).sum(1)
        words = _WORD_SD**2 * seen.at.words_NC.shape[1]
        total = seen.doubt_M
        for index, (point, weight) in enumerate(zip(self._points, self._weights, strict=True)):
            _, (moved, unmoved, own) = self._unpacked(point)
            prior = seen.features[index] ** 2 @ self._feature_variance + own + math.exp(2 * point[-3]) * level_M
            prior += (moved + unmoved + words) * self._size(seen.at, point) ** 2
            total = total + weight * (prior - (seen.projected[index] ** 2).sum(0))
        return np.asarray(total + self._weights @ (seen.means_SM - seen.mean_M) ** 2)

    def mean_at_mode(self, at: Coordinates) -> np.ndarray:
        """Expected losses [M] under the most probable hyperparameters: cheap, for searches."""
        point = self._points[0]
        features, (level_mean, level) = self._features(at, point), self._level(at)
        pairs = _Pairs(at, self._known)
        features_of_known, level_MN = self._features(self._known, point), level @ self._level_N.T
        kernel = self._kernel(pairs, at, self._known, point, features, features_of_known, level_MN)
        mean = self._best_loss + features @ self._feature_mean + math.exp(point[-3]) * level_mean
        return np.asarray(mean + kernel @ self._mode_weights)

    def _set_priors(self, shifts: Sequence[tuple[float, float]], bowls: Sequence[int], noise_sd: float | None) -> None:
        axes = range(self._num_axes)
        noise = _LOG_NOISE if not noise_sd else _Prior(math.log(noise_sd), _GIVEN_NOISE_SD)
        priors = [*(_Prior(*shift) for shift in shifts), *(_LOG_LENGTH for _ in axes)]
        priors += [_LOG_MOVED, _LOG_UNMOVED, _LOG_OWN, _LOG_SIZE, noise, _SHRINKAGE]
        self._prior_mean = np.array([prior.mean for prior in priors])
        self._prior_sd = np.array([prior.sd for prior in priors])
        self._shift_slice = slice(0, self._num_axes)
        self._pair = tuple(bowls) if len(bowls) == 2 else None
        features = [_Prior(0.0, _OFFSET_SD), *(_Prior(0.0, _SLOPE_SD) for _ in axes)]
        features += [_CURVATURE if axis in bowls else _Prior(0.0, _CURVATURE.sd) for axis in axes]
        features += [_PRODUCT] if self._pair else []
        self._feature_mean = np.array([prior.mean for prior in features])
        self._feature_variance = np.array([prior.sd**2 for prior in features])

    def _level(self, at: Coordinates) -> tuple[np.ndarray, np.ndarray]:
        """Level of size 1 over its value at the reference length: mean [N], root of the covariance [N, R]."""
        lengths, inverse = np.unique(at.t_N - self._t0, return_inverse=True)
        power = np.maximum(_POWER.mean + _POWER.sd * ndtri(_QUANTILES), 0.03)
        curves = np.expm1(-power[:, None] * lengths)
        mean = curves.mean(0)
        root = np.concatenate([(curves - mean) / math.sqrt(len(curves)), _BEND_SD * lengths[None, :] ** 2])
        return mean[inverse], root.T[inverse]

    def _cut_losses(self, losses_N: np.ndarray) -> None:
        """Sets the losses over the best one after the cut, their further variances, and the middle of the bowl."""
        t_N = self._known.t_N
        losses_N = np.where(np.isfinite(losses_N), losses_N, np.inf)
        lowest_N = np.array([losses_N[np.abs(t_N - t) < _SAME_LENGTH].min() for t in t_N])
        # A lone divergence is no valley.
        highest_N = self._best_loss + 2 * np.maximum(self._level_mean_N, 0.0) + 2 * _FREE
        valley_N = np.minimum(lowest_N, highest_N)
        above_N = np.minimum(losses_N - valley_N, _CUT)
        self._losses_N = valley_N + above_N - self._best_loss
        self._doubt_N = (_DOUBT * np.maximum(0.0, above_N - _FREE)) ** 2
        near_N = np.exp(-above_N / 0.1)
        moved_NK = self._known.x_NK - (t_N - self._t0)[:, None] * self._prior_mean[self._shift_slice]
        self._middle_K = near_N @ moved_NK / near_N.sum()
        self._lowest = np.argsort(above_N, kind="stable")[:8]

    def _valley(self, t_M: np.ndarray) -> np.ndarray:
        """Lowest expected loss [M] of the best known settings moved along the shift to a length."""
        lengths, inverse = np.unique(t_M, return_inverse=True)
        best, count = self._known[self._lowest], len(self._lowest)
        t = np.repeat(lengths, count)
        moved = np.tile(best.x_NK, (len(lengths), 1))
        moved = moved + (t - np.tile(best.t_N, len(lengths)))[:, None] * self._points[0][self._shift_slice]
        at = Coordinates(moved, np.tile(best.words_NC, (len(lengths), 1)), t)
        return np.asarray(self.mean_at_mode(at).reshape(-1, count).min(1)[inverse])

    def _size(self, at: Coordinates, point: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp(-point[-1] * (at.t_N - self._t0)))

    def _moved(self, at: Coordinates, point: np.ndarray) -> np.ndarray:
        z_NK = at.x_NK - (at.t_N - self._t0)[:, None] * point[self._shift_slice] - self._middle_K
        return np.asarray(z_NK.T)

    def _features(self, at: Coordinates, point: np.ndarray) -> np.ndarray:
        """Linear terms [N, F]: offset, and slopes, curvatures and product of the bowl."""
        z_KN, size = self._moved(at, point), self._size(at, point)
        product = [z_KN[self._pair[0]] * z_KN[self._pair[1]] * size] if self._pair else []
        return np.stack([np.ones_like(size), *(z_KN * size), *(z_KN**2 * size), *product], axis=1)

    def _feature_slopes(self, point: np.ndarray, features: np.ndarray) -> list[np.ndarray]:
        """Derivatives of the features at the known points by each shift, and by the shrinkage."""
        axes, t = self._num_axes, self._known.t_N - self._t0
        z_KN = self._moved(self._known, point)
        scaled = -t * self._size(self._known, point)
        slopes = []
        for axis in range(axes):
            slope = np.zeros_like(features)
            slope[:, 1 + axis] = scaled
            slope[:, 1 + axes + axis] = 2 * z_KN[axis] * scaled
            if self._pair and axis in self._pair:
                slope[:, -1] = z_KN[self._pair[1 - self._pair.index(axis)]] * scaled
            slopes.append(slope)
        shrinking = -t[:, None] * features
        shrinking[:, :1] = 0.0
        return [*slopes, shrinking]

    def _smooth(self, pairs: _Pairs, a: Coordinates, b: Coordinates, point: np.ndarray) -> _Smooth:
        length_K, (moved, unmoved, _) = self._unpacked(point)
        size_AB = np.outer(self._size(a, point), self._size(b, point))
        shift_K, scale_K = point[self._shift_slice], length_K**-2.0
        of_moved = np.concatenate([scale_K, -2 * scale_K * shift_K, [scale_K @ shift_K**2]])
        moved_AB = np.maximum(np.tensordot(of_moved, pairs.squares_QAB, 1), 0.0)
        unmoved_AB = np.tensordot(scale_K, pairs.squares_QAB[: len(scale_K)], 1)
        g_AB, g_slope_AB = _matern(moved_AB)
        u_AB, u_slope_AB = _matern(unmoved_AB)
        words_AB = pairs.offsets_AB * size_AB
        g_size, u_size = moved * size_AB * pairs.factor_AB, unmoved * size_AB * pairs.factor_AB
        return _Smooth(g_size * g_AB, u_size * u_AB, words_AB, g_size * g_slope_AB, u_size * u_slope_AB)

    def _kernel(
        self,
        pairs: _Pairs,
        a: Coordinates,
        b: Coordinates,
        point: np.ndarray,
        features_of_a: np.ndarray,
        features_of_b: np.ndarray,
        level_AB: np.ndarray,
    ) -> np.ndarray:
        """Covariance [A, B] under one point of the hyperparameters."""
        smooth, own = self._smooth(pairs, a, b, point), self._unpacked(point)[1][2]
        kernel = (features_of_a * self._feature_variance) @ features_of_b.T + smooth.g_AB + smooth.u_AB
        return np.asarray(kernel + own * pairs.own_AB + smooth.words_AB + math.exp(2 * point[-3]) * level_AB)

    def _unpacked(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Length scales of the axes, and the variances of `g`, `u` and `own`."""
        axes = self._num_axes
        return np.exp(point[axes : 2 * axes]), np.exp(2 * point[2 * axes : 2 * axes + 3])

    def _posterior(self, whitened: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log posterior of the hyperparameters and its gradient, both in prior deviations."""
        point = self._prior_mean + whitened * self._prior_sd
        axes, known, pairs = self._num_axes, self._known, self._pairs
        length_K, (_, _, own) = self._unpacked(point)
        noise = math.exp(2 * point[-2])
        features = self._features(known, point)
        slopes = self._feature_slopes(point, features)
        smooth = self._smooth(pairs, known, known, point)
        weighted = features * self._feature_variance
        size = math.exp(point[-3])
        kernel = smooth.words_AB + weighted @ features.T + smooth.g_AB + smooth.u_AB + own * pairs.own_AB
        kernel += size**2 * self._level_NN
        kernel[np.diag_indices(len(kernel))] += noise + self._doubt_N + _JITTER
        factor = np.linalg.cholesky(kernel)
        lower = np.tril(dpotri(factor, lower=1)[0])
        inverse = lower + np.tril(lower, -1).T
        residual = self._losses_N - features @ self._feature_mean - size * self._level_mean_N
        alpha = inverse @ residual
        value = residual @ alpha / 2 + np.log(np.diag(factor)).sum() + whitened @ whitened / 2
        # d value = sum(pull * d kernel) + alpha . d residual
        pull = (inverse - np.outer(alpha, alpha)) / 2
        on_features = pull @ weighted
        squares = pairs.squares_QAB.reshape(len(pairs.squares_QAB), -1)
        on_g, on_u = squares @ (pull * smooth.g_slope_AB).ravel(), squares @ (pull * smooth.u_slope_AB).ravel()
        gradient = np.empty_like(point)
        for axis in range(axes):
            by_features = 2 * np.vdot(on_features, slopes[axis]) - alpha @ (slopes[axis] @ self._feature_mean)
            shift, scale = point[axis], length_K[axis] ** -2.0
            gradient[axis] = by_features + 2 * scale * (shift * on_g[-1] - on_g[axes + axis])
            moved = on_g[axis] - 2 * shift * on_g[axes + axis] + shift**2 * on_g[-1]
            gradient[axes + axis] = -2 * scale * (moved + on_u[axis])
        gradient[-6], gradient[-5] = 2 * np.vdot(pull, smooth.g_AB), 2 * np.vdot(pull, smooth.u_AB)
        gradient[-4], gradient[-2] = 2 * own * np.vdot(pull, pairs.own_AB), 2 * noise * np.trace(pull)
        gradient[-3] = 2 * size**2 * np.vdot(pull, self._level_NN) - size * (alpha @ self._level_mean_N)
        by_features = 2 * np.vdot(on_features, slopes[-1]) - alpha @ (slopes[-1] @ self._feature_mean)
        by_smooth = 2 * (known.t_N - self._t0) @ (pull * (smooth.g_AB + smooth.u_AB + smooth.words_AB)).sum(1)
        gradient[-1] = by_features - by_smooth
        return float(value), gradient * self._prior_sd + whitened

    def _solve(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Cholesky factor [N, N], whitened residuals [N], and the negative log posterior."""
        features = self._features(self._known, point)
        kernel = self._kernel(self._pairs, self._known, self._known, point, features, features, self._level_NN)
        kernel[np.diag_indices(len(kernel))] += math.exp(2 * point[-2]) + self._doubt_N + _JITTER
        factor = np.linalg.cholesky(kernel)
        residual = self._losses_N - features @ self._feature_mean - math.exp(point[-3]) * self._level_mean_N
        solved = solve_triangular(factor, residual, lower=True, check_finite=False)
        value = solved @ solved / 2 + np.log(np.diag(factor)).sum()
        return factor, solved, float(value + (((point - self._prior_mean) / self._prior_sd) ** 2).sum() / 2)

    def _mode(self, start: np.ndarray) -> np.ndarray:
        """The most probable hyperparameters, in prior deviations."""
        found = minimize(
            self._posterior,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(-4.0, 4.0)] * len(start),
            options={"maxiter": 40, "ftol": 1e-5, "gtol": 1e-2},
        )
        return np.asarray(found.x)

    def _doubt_contradicted(self, mode: np.ndarray) -> bool:
        """Whether a loss is far above the prediction of all others; then its variance grows to that distance."""
        factor, solved, _ = self._solve(self._prior_mean + mode * self._prior_sd)
        lower = np.tril(dpotri(factor, lower=1)[0])
        precision = np.diag(lower)
        # Off by alpha / precision with standard deviation precision^-1/2, each loss left out in turn.
        alpha = solve_triangular(factor, solved, lower=True, trans=1, check_finite=False)
        contradicted = alpha / np.sqrt(precision) > _CONTRADICTED
        self._doubt_N = self._doubt_N + np.where(contradicted, (alpha / precision) ** 2, 0.0)
        return bool(contradicted.any())

    def _average(self, mode: np.ndarray) -> None:
        """Sets the points of the posterior and their weights, the mode first."""
        size, step = len(mode), 0.02
        at_mode = self._posterior(mode)[1]
        hessian = np.array([(self._posterior(mode + step * row)[1] - at_mode) / step for row in np.eye(size)])
        values, vectors = np.linalg.eigh((hessian + hessian.T) / 2)
        # The prior alone has curvature 1 in every direction.
        values = np.maximum(values, 0.7)
        self._laplace_variance = np.square(vectors) @ (1 / values) * self._prior_sd**2
        whitened = np.clip(mode + _standard_draws(_NUM_POINTS, size) @ (vectors / np.sqrt(values)).T, -4.0, 4.0)
        self._points = self._prior_mean + whitened * self._prior_sd
        solved = [self._solve(point) for point in self._points]
        self._solved = [(factor, residuals) for factor, residuals, _ in solved]
        self._mode_weights = solve_triangular(*self._solved[0], lower=True, trans=1, check_finite=False)
        proposal = (((whitened - mode) @ vectors) ** 2 * values).sum(1) / 2
        log_weights = proposal - np.array([value for _, _, value in solved])
        weights = np.exp(np.maximum(log_weights - log_weights.max(), -6.0))
        # Truncated importance weights (Ionides 2008): one point far from the mode may not take all.
        weights = np.minimum(weights, 4 * weights.mean())
        self._weights = weights / weights.sum()


def _matern(squared: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matern 5/2 and its derivative by the squared distance."""
    root = _SQRT5 * np.sqrt(squared)
    fall = np.exp(-root)
    linear = (1 + root) * fall
    return linear + 5 / 3 * squared * fall, -5 / 6 * linear


def _standard_draws(count: int, size: int) -> np.ndarray:
    """Standard normal draws [count, size] in opposite pairs, after a zero; always the same."""
    half = np.random.default_rng(0).standard_normal(((count - 1) // 2 + 1, size))
    draws = np.concatenate([np.zeros((1, size)), np.stack([half, -half], axis=1).reshape(-1, size)])
    return draws[:count]
