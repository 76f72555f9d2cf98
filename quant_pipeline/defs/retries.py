"""What may go better the next time: only a store that another process held."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import dagster as dg

from quant_pipeline.errors import StoreBusy

STARTED_BY = "quant/started_by"
TRIES, SECONDS = 3, 30.0
Compute = TypeVar("Compute", bound=Callable[..., Any])


def retried(compute: Compute) -> Compute:
    """Try a step of the daemon again if a store was busy; every other error ends it at once.

    Runs of `quant` end with the error: somebody is there to read it.
    """
    if inspect.isgeneratorfunction(compute):

        @wraps(compute)
        def made(context: Any, *arguments: Any, **named: Any) -> Iterator[Any]:
            with retrying(context.run):
                yield from compute(context, *arguments, **named)
    else:

        @wraps(compute)
        def made(context: Any, *arguments: Any, **named: Any) -> Any:
            with retrying(context.run):
                return compute(context, *arguments, **named)

    return made  # type: ignore[return-value]


@contextmanager
def retrying(run: dg.DagsterRun | None) -> Iterator[None]:
    """Ask for another try of the run's step if a store was busy."""
    try:
        yield
    except StoreBusy as error:
        if run is None or STARTED_BY in run.tags:
            raise
        raise dg.RetryRequested(max_retries=TRIES, seconds_to_wait=SECONDS) from error
