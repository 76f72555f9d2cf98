"""Every error that a user can mend: what is wrong, with names and numbers, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_NAMES = 120


class QuantError(Exception):
    """Base of all errors that end a command with one clear message and exit code 1."""


class SettingsError(QuantError):
    """quant.toml or a QUANT_* variable cannot be used, or contradicts a used home."""


class SourceError(QuantError):
    """A file or a download is not what it should be."""


class NoData(QuantError):
    """What was asked for is not stored."""


class FeatureError(QuantError):
    """A feature, or the bars it is to be made from, cannot be used."""


class NotEnoughHistory(QuantError):
    """Too few sessions are known for one fold; the message carries every number."""


class DegenerateData(QuantError):
    """Training data or a trained model from which no usable score can come."""


class GateError(QuantError):
    """A gate between two assets is closed: something earlier is missing, stale or open."""


class DataLate(QuantError):
    """Prices of a session are still missing when they should long be there."""


class ProofFailed(QuantError):
    """Something that was proved of models or scores does not hold."""


class AlertFailed(QuantError):
    """Nobody could be told of what went wrong: a webhook or a command failed."""


class StoreError(QuantError):
    """A store refused a write or could not be read."""


class StoreBusy(StoreError):
    """Another process holds the store."""


class ModelFileError(StoreError):
    """A model file is missing or is not the one that the registry vouches for."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, what was probably meant, and what there is.

    >>> unknown_name("task", "ret_5", ["up_5d", "ret_5d"])
    'No task ret_5. Did you mean ret_5d? Known: ret_5d, up_5d.'
    """
    names = sorted(known)
    is_long = len(names) > MOST_NAMES
    by_lower = {known_name.lower(): known_name for known_name in names}
    close = get_close_matches(name.lower(), by_lower, n=3 if is_long else 1)
    near = [by_lower[lower] for lower in close]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    if is_long:
        return f"No {kind} {name}.{hint} {len(names)} names are known."
    return f"No {kind} {name}.{hint} Known: {', '.join(names) or 'none'}."
