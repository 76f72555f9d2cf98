"""Another future: everything after a date made up anew, to show that it does not matter."""

from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

# Symbols that nobody has, listed after the date; half as many as there are, 3 at least.
STRANGER = "ZZNEW"
FEWEST_STRANGERS = 3
BAR_COLUMNS = ("open", "high", "low", "close", "adj_index", "volume")


def make_up_sessions(last: date, n_days: int, rng: np.random.Generator) -> pa.Table:
    """Dates after `last` with `is_session` and `n_bars`: some weekdays are none, some weekends are.

    Not the real calendar on purpose; at least the last day of `n_days` is a session.
    """
    dates = [last + timedelta(days=n) for n in range(1, n_days + 1)]
    is_weekday = np.array([day.weekday() < 5 for day in dates])
    is_session = np.where(is_weekday, rng.random(n_days) < 0.85, rng.random(n_days) < 0.15)
    is_session[-1] = True
    return pa.table(
        {
            "ts": pa.array(dates, pa.date32()),
            "n_bars": pa.array(rng.integers(1, 10_000, n_days)),
            "is_session": pa.array(is_session),
        }
    )


def make_up_bars(newest: pa.Table, dates: pa.Array, rng: np.random.Generator) -> pa.Table:
    """Bars on made-up dates: symbol, ts, prices, adj_index, volume; sorted by symbol, ts.

    `newest` holds the last known bar of each symbol. A fifth of the symbols end, and of those that
    had ended every second one stays away; the others go on, or come back, from the level of
    another symbol, with moves of 20% a day and holes; new ones are listed.
    """
    names = newest["symbol"].to_pylist()
    levels = {name: newest[name].to_numpy()[rng.permutation(len(names))] for name in BAR_COLUMNS}
    stays = rng.random(len(names)) < 0.8
    stays[_ended(newest["ts"].to_numpy())[::2]] = False
    everyone = [name for name, here in zip(names, stays, strict=True) if here]
    chosen = {name: values[stays] for name, values in levels.items()}
    new = _strangers(names)
    everyone += new
    for name, values in chosen.items():
        chosen[name] = np.concatenate([values, np.full(len(new), 10.0)])
    shape = len(everyone), len(dates)
    factor = np.exp(np.cumsum(0.2 * rng.standard_normal(shape), axis=1))
    close = chosen["close"][:, None] * factor
    open_ = close * np.exp(0.05 * rng.standard_normal(shape))
    spread = np.exp(0.05 * np.abs(rng.standard_normal((2, *shape))))
    values = {
        "open": open_,
        "high": np.maximum(open_, close) * spread[0],
        "low": np.minimum(open_, close) / spread[1],
        "close": close,
        "adj_index": chosen["adj_index"][:, None] * factor * rng.uniform(0.5, 2.0, (shape[0], 1)),
        "volume": np.round(chosen["volume"][:, None] * rng.lognormal(0.0, 1.0, shape)) + 1.0,
    }
    has_bar = rng.random(shape) < 0.9
    symbol, day = np.nonzero(has_bar)
    table = pa.table(
        {
            "symbol": pa.array(np.array(everyone, object)[symbol], pa.string()),
            "ts": dates.take(pa.array(day)),
            **{name: pa.array(found[has_bar]) for name, found in values.items()},
        }
    )
    return table.sort_by([("symbol", "ascending"), ("ts", "ascending")])


def restate_bars(bars: pa.Table, share: float, rng: np.random.Generator) -> pa.Table:
    """A part of known bars with other values: what a vendor might deliver later."""
    chosen = bars.filter(pa.array(rng.random(len(bars)) < share))
    for name in BAR_COLUMNS:
        at = chosen.column_names.index(name)
        factor = pa.scalar(float(rng.uniform(1.5, 3.0)))
        chosen = chosen.set_column(at, name, pc.multiply(chosen[name], factor))
    return chosen


def rewrite_memberships(members: pa.Table, last: date, rng: np.random.Generator) -> pa.Table:
    """Intervals of members (symbol, first, last) as far as known on `last`, with another future.

    What began by then and had ended stays; whoever was in may leave at any later date or never, new
    members come.
    """
    known = members.filter(pc.less_equal(members["first"], pa.scalar(last)))
    ends = [
        end if end is not None and end <= last else _some_day(last, rng)
        for end in known["last"].to_pylist()
    ]
    once = list(dict.fromkeys(members["symbol"].to_pylist()))
    late = [*_strangers(once), *(symbol for symbol in once if rng.random() < 0.3)]
    rows = {
        "symbol": [*known["symbol"].to_pylist(), *late],
        "first": [*known["first"].to_pylist(), *(last + timedelta(days=1) for _ in late)],
        "last": [*ends, *(None for _ in late)],
    }
    return pa.table(
        {
            "symbol": pa.array(rows["symbol"], pa.string()),
            "first": pa.array(rows["first"], pa.date32()),
            "last": pa.array(rows["last"], pa.date32()),
        }
    )


def _ended(last: npt.NDArray[np.datetime64]) -> npt.NDArray[np.intp]:
    """Symbols whose last bar is older than the newest of all, the longest gone first."""
    order = np.argsort(last, kind="stable")
    return order[last[order] < last[order[-1:]]]


def _strangers(names: list[str]) -> list[str]:
    prefix = STRANGER
    while any(name.startswith(prefix) for name in names):
        prefix += "Z"
    return [f"{prefix}{i}" for i in range(max(FEWEST_STRANGERS, len(names) // 2))]


def _some_day(last: date, rng: np.random.Generator) -> date | None:
    """A date after `last`, or none for an interval that has not ended."""
    return last + timedelta(days=int(rng.integers(1, 400))) if rng.random() < 0.5 else None


def rewrite_examples(
    x: npt.NDArray[np.float32],
    values: npt.NDArray[np.float64],
    is_later: npt.NDArray[np.bool_],
    is_known_later: npt.NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Features of later rows, and of each column of `values` what became known later, made up.

    Numbers are shuffled across rows, scaled and shifted; of two classes one becomes four times as
    frequent as the other. So neither order nor distribution stays.
    """
    x, values = x.copy(), values.copy()
    rows = np.flatnonzero(is_later)
    scale = np.asarray(rng.uniform(2.0, 5.0, x.shape[1]), np.float32)
    x[rows] = x[rng.permutation(rows)] * scale
    known = np.flatnonzero(is_known_later)
    for j in range(values.shape[1]):
        kinds = np.unique(values[:, j])
        if len(kinds) <= 2:
            values[known, j] = rng.choice(
                kinds, len(known), p=[0.2, 0.8][: len(kinds)] if len(kinds) > 1 else None
            )
        else:
            spread = float(np.std(values[:, j]))
            values[known, j] = 3.0 * values[rng.permutation(known), j] + 2.0 * spread
    return x, values
