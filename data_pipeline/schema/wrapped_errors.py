"""The errors inside an error: causes that it declares, and those that libraries keep under names of their own."""

from collections.abc import Iterator


def wrapped_errors(error: BaseException) -> Iterator[tuple[int | None, BaseException]]:
    """(rank named by the wrapper, inner error) of all errors directly inside an error.

    These are declared causes (`raise ... from`, wrappers of Ray and SQLAlchemy, exception groups). An error that was
    raised while another one was handled is a different error: its `__context__` counts for Tune alone, which raises its
    own error in place of that of a callback.
    """
    failures = getattr(error, "worker_failures", None)  # ray.train.WorkerGroupError: {rank: exception}
    if isinstance(failures, dict):
        for rank, inner in failures.items():
            if isinstance(inner, BaseException):
                yield rank, inner
    # RayTaskError.cause, ControllerError, WorkerHealthCheckFailedError; the driver's error below one of SQLAlchemy.
    names = ["controller_failure", "health_check_failure", "cause", "orig", "__cause__"]
    if type(error).__name__ == "TuneError":
        names.append("__context__")
    kept = [getattr(error, name, None) for name in names]
    if (type(error).__module__ or "").split(".")[0] == "ray":
        # Other wrappers of Ray's, UserExceptionWithTraceback for one, keep it under a name that they do not publish.
        kept += vars(error).values()
    for inner in kept:
        if isinstance(inner, BaseException):
            yield None, inner
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield None, inner
