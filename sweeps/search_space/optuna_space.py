"""The search space in Optuna's terms; apart from `search_space`, because Optuna takes longer to import than a plan."""

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweeps.search_space.distribution import Distribution, SearchSpace


def optuna_space(space: SearchSpace) -> dict[str, BaseDistribution]:
    """The same search space with Optuna's distributions."""
    return {path: optuna_distribution(distribution) for path, distribution in space.items()}


def optuna_distribution(distribution: Distribution) -> BaseDistribution:
    """The same distribution as an Optuna object."""
    match distribution.kind:
        case "choice":
            return CategoricalDistribution(distribution.extremes())
        case "uniform" | "log_uniform":
            low, high = distribution.extremes()
            return FloatDistribution(low, high, log=distribution.kind == "log_uniform")
        case _:
            low, high = distribution.extremes()
            return IntDistribution(low, high, log=distribution.kind == "log_int_uniform")
