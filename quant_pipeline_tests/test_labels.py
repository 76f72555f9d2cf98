"""Rules of labels: what could be traded after the score, known when the exit session closes."""

from dataclasses import fields
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.market.labels import Labels, make_labels
from quant_pipeline.settings import Task

Mode = Literal["last_close", "drop"]
MODES: tuple[Mode, ...] = ("last_close", "drop")
ROWS = ("symbol", "ts", "entry_ts", "exit_ts", "known_at", "fwd_return", "label")


@st.composite
def panels(draw: st.DrawFn) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.datetime64]]:
    """Closes with holes, late listings and delistings, on sessions with gaps between."""
    n, n_symbols = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    close = np.exp(0.1 * rng.standard_normal((n, n_symbols)).cumsum(axis=0))
    close[rng.random(close.shape) < draw(st.sampled_from([0.0, 0.2, 0.6]))] = np.nan
    for j in range(n_symbols):
        close[: draw(st.integers(0, n)) // 2, j] = np.nan
        close[n - draw(st.integers(0, n)) // 2 :, j] = np.nan
    gaps = rng.integers(1, 5, n)
    return close, np.datetime64("2020-01-01") + np.cumsum(gaps)


tasks = st.builds(
    Task,
    task_id=st.just("t"),
    kind=st.sampled_from(["classification", "regression"]),
    horizon=st.integers(1, 6),
    entry_lag=st.integers(1, 3),
    threshold=st.sampled_from([0.0, -0.05, 0.05]),
)
DAY = np.timedelta64(1, "D")


def oracle(
    close: npt.NDArray[np.float64],
    sessions: npt.NDArray[np.datetime64],
    task: Task,
    start: np.datetime64,
    end: np.datetime64,
    mode: Mode,
) -> tuple[list[tuple[Any, ...]], dict[str, int]]:
    rows, n_no_entry, n_no_exit = [], 0, 0
    for t in range(len(sessions)):
        for symbol in range(close.shape[1]):
            entry, exit_ = t + task.entry_lag, t + task.entry_lag + task.horizon
            if exit_ >= len(sessions) or not start <= sessions[exit_] < end:
                continue
            if np.isnan(close[t, symbol]):
                continue
            if np.isnan(close[entry, symbol]):
                n_no_entry += 1
                continue
            last = exit_
            while np.isnan(close[last, symbol]):
                last -= 1
            if last != exit_ and mode == "drop":
                n_no_exit += 1
                continue
            gain = close[last, symbol] / close[entry, symbol] - 1.0
            label = float(gain > task.threshold) if task.kind == "classification" else gain
            x = sessions[exit_]
            rows.append((symbol, sessions[t], sessions[entry], x, x, gain, label))
    dropped = {"no_entry_bar": n_no_entry}
    return rows, dropped | ({"no_exit_bar": n_no_exit} if mode == "drop" else {})


def rows_of(labels: Labels) -> list[tuple[Any, ...]]:
    return list(zip(*(getattr(labels, name) for name in ROWS), strict=True))


def window(sessions: npt.NDArray[np.datetime64], data: st.DataObject) -> tuple[Any, Any]:
    span = int((sessions[-1] - sessions[0]).astype(int)) + 2
    a, b = sorted([data.draw(st.integers(-1, span)), data.draw(st.integers(-1, span))])
    return sessions[0] + a * DAY, sessions[0] + b * DAY


@settings(deadline=None, max_examples=200)
@given(panels(), tasks, st.sampled_from(MODES), st.data())
def test_labels_are_those_of_the_slow_oracle(panel: Any, task: Task, mode: Mode, data: Any) -> None:
    close, sessions = panel
    start, end = window(sessions, data)
    before = close.copy()
    found = make_labels(close, sessions, task, start, end, mode)
    rows, dropped = oracle(close, sessions, task, start, end, mode)
    assert rows_of(found) == rows
    assert found.n_dropped == dropped
    assert np.array_equal(close, before, equal_nan=True)


@settings(deadline=None)
@given(panels(), tasks, st.sampled_from(MODES), st.data())
def test_no_bar_after_known_at_matters(panel: Any, task: Task, mode: Mode, data: Any) -> None:
    close, sessions = panel
    n = data.draw(st.integers(1, len(sessions)))
    end = sessions[n - 1] + DAY
    whole = make_labels(close, sessions, task, sessions[0], end, mode)
    past = make_labels(close[:n], sessions[:n], task, sessions[0], end, mode)
    for name in ROWS:
        assert getattr(past, name).tobytes() == getattr(whole, name).tobytes()
    assert past.n_dropped == whole.n_dropped
    assert (whole.known_at < end).all()


@settings(deadline=None)
@given(panels(), tasks, st.sampled_from(MODES), st.data())
def test_windows_that_tile_time_give_the_labels_of_the_whole(
    panel: Any, task: Task, mode: Mode, data: Any
) -> None:
    """Also from a piece and the label's span before it alone, which is what the chain reads."""
    close, sessions = panel
    n = len(sessions)
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
    whole = make_labels(close, sessions, task, sessions[0], sessions[-1] + DAY, mode)
    pieces = []
    for a, b in pairwise(cuts):
        first = max(a - task.label_span, 0)
        one = make_labels(
            close[first:b], sessions[first:b], task, sessions[a], sessions[b - 1] + DAY, mode
        )
        pieces.append(one)
    for name in ROWS:
        parts = np.concatenate([getattr(p, name) for p in pieces])
        assert parts.tobytes() == getattr(whole, name).tobytes()
    for reason, total in whole.n_dropped.items():
        assert sum(p.n_dropped[reason] for p in pieces) == total


def test_a_delisting_loss_stays_in_and_an_example_says_when_each_thing_happens() -> None:
    sessions = np.array([f"2020-01-{d:02d}" for d in (2, 3, 6, 7, 8, 9)], "datetime64[D]")
    close = np.array([[10.0], [10.0], [8.0], [5.0], [np.nan], [np.nan]])
    task = Task(task_id="t", kind="regression", horizon=2)
    labels = make_labels(close, sessions, task, sessions[0], sessions[-1] + DAY)
    assert [str(d) for d in labels.ts] == ["2020-01-02", "2020-01-03", "2020-01-06"]
    assert [str(d) for d in labels.entry_ts] == ["2020-01-03", "2020-01-06", "2020-01-07"]
    assert [str(d) for d in labels.known_at] == ["2020-01-07", "2020-01-08", "2020-01-09"]
    assert labels.fwd_return.tolist() == pytest.approx([-0.5, 5 / 8 - 1, 0.0])
    assert labels.n_dropped == {"no_entry_bar": 0}
    dropped = make_labels(close, sessions, task, sessions[0], sessions[-1] + DAY, "drop")
    assert len(dropped.ts) == 1
    assert dropped.n_dropped == {"no_entry_bar": 0, "no_exit_bar": 2}


def test_every_array_of_labels_has_one_length() -> None:
    task = Task(task_id="t", kind="classification", horizon=1)
    sessions = np.arange(5).astype("datetime64[D]")
    for close in (np.ones((5, 3)), np.full((5, 3), np.nan), np.ones((5, 0))):
        labels = make_labels(close, sessions, task, sessions[0], sessions[-1])
        assert len({len(getattr(labels, name)) for name in ROWS}) == 1
        assert {f.name for f in fields(Labels)} == {*ROWS, "n_dropped"}
