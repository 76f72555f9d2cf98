"""Rules of labels: what could be traded after the score, known when the exit session closes."""

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant_pipeline.market.labels import REASONS, Labels, make_labels
from quant_pipeline.settings import Task

Mode = Literal["last_close", "drop"]
MODES: tuple[Mode, ...] = ("last_close", "drop")
KEYS = ("symbol", "ts", "entry_ts", "exit_ts", "known_at")
ROWS = (*KEYS, "fwd_return", "label", "reason")
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Days = npt.NDArray[np.datetime64]


@dataclass(frozen=True)
class Panel:
    """Sessions x symbols of closes and flags."""

    close: Floats
    is_jump: Bools
    sessions: Days

    def labels(self, task: Task, start: Any, end: Any, mode: Mode = "last_close") -> Labels:
        return make_labels(self.close, self.is_jump, self.sessions, task, start, end, mode)

    def part(self, rows: slice) -> "Panel":
        return Panel(self.close[rows], self.is_jump[rows], self.sessions[rows])


@st.composite
def panels(draw: st.DrawFn) -> Panel:
    """Closes with holes, late listings, delistings and jumps, on sessions with gaps between."""
    n, n_symbols = draw(st.integers(1, 25)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    close = np.exp(0.1 * rng.standard_normal((n, n_symbols)).cumsum(axis=0))
    close[rng.random(close.shape) < draw(st.sampled_from([0.0, 0.2, 0.6]))] = np.nan
    for j in range(n_symbols):
        close[: draw(st.integers(0, n)) // 2, j] = np.nan
        close[n - draw(st.integers(0, n)) // 2 :, j] = np.nan
    is_jump = rng.random(close.shape) < draw(st.sampled_from([0.0, 0.1, 0.4]))
    gaps = rng.integers(1, 5, n)
    sessions = np.datetime64("2020-01-01") + np.cumsum(gaps)
    return Panel(close, is_jump & ~np.isnan(close), sessions)


@st.composite
def made_tasks(draw):
    kinds: list[dict[str, Any]] = [
        *({"kind": "classification", "threshold": x} for x in (0.0, -0.05, 0.05)),
        {"kind": "classification", "above": "median"},
        {"kind": "regression"},
        {"kind": "ranking"},
    ]
    horizon, entry_lag = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    return Task(task_id="t", horizon=horizon, entry_lag=entry_lag, **draw(st.sampled_from(kinds)))


tasks = made_tasks()
DAY = np.timedelta64(1, "D")


def oracle(
    panel: Panel, task: Task, start: np.datetime64, end: np.datetime64, mode: Mode
) -> list[tuple[Any, ...]]:
    close, sessions = panel.close, panel.sessions
    rows: list[tuple[Any, ...]] = []
    for t in range(len(sessions)):
        for symbol in range(close.shape[1]):
            entry, exit_ = t + task.entry_lag, t + task.entry_lag + task.horizon
            if exit_ >= len(sessions) or not start <= sessions[exit_] < end:
                continue
            if np.isnan(close[t, symbol]):
                continue
            x = sessions[exit_]
            key = (symbol, sessions[t], sessions[entry], x, x)
            if np.isnan(close[entry, symbol]):
                rows.append((*key, None, None, "no_entry_bar"))
                continue
            last = exit_
            while np.isnan(close[last, symbol]):
                last -= 1
            if last != exit_ and mode == "drop":
                rows.append((*key, None, None, "no_exit_bar"))
                continue
            if any(panel.is_jump[s, symbol] for s in range(entry + 1, exit_ + 1)):
                rows.append((*key, None, None, "suspect_jump"))
                continue
            gain = close[last, symbol] / close[entry, symbol] - 1.0
            is_binary = task.kind == "classification" and task.above == "threshold"
            label = float(gain > task.threshold) if is_binary else gain
            rows.append((*key, gain, label, ""))
    return rows


def rows_of(labels: Labels) -> list[tuple[Any, ...]]:
    """One tuple a row, None for NaN."""
    columns = [getattr(labels, name) for name in KEYS]
    for values in (labels.fwd_return, labels.label):
        columns.append([None if np.isnan(v) else v for v in values])
    return list(zip(*columns, labels.reason, strict=True))


def same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Equal to the last bit; texts as texts, as their bytes are addresses."""
    if one.dtype == object:
        return one.tolist() == other.tolist()
    return one.tobytes() == other.tobytes()


def window(sessions: npt.NDArray[np.datetime64], data: st.DataObject) -> tuple[Any, Any]:
    span = int((sessions[-1] - sessions[0]).astype(int)) + 2
    a, b = sorted([data.draw(st.integers(-1, span)), data.draw(st.integers(-1, span))])
    return sessions[0] + a * DAY, sessions[0] + b * DAY


@settings(deadline=None, max_examples=300)
@given(panels(), tasks, st.sampled_from(MODES), st.data())
def test_labels_are_those_of_the_slow_oracle(
    panel: Panel, task: Task, mode: Mode, data: Any
) -> None:
    start, end = window(panel.sessions, data)
    close, is_jump = panel.close.copy(), panel.is_jump.copy()
    found = panel.labels(task, start, end, mode)
    rows = oracle(panel, task, start, end, mode)
    assert rows_of(found) == rows
    assert found.n_by_reason() == {r: [row[-1] for row in rows].count(r) for r in REASONS}
    assert np.array_equal(panel.close, close, equal_nan=True)
    assert np.array_equal(panel.is_jump, is_jump)


@settings(deadline=None)
@given(panels(), tasks, st.sampled_from(MODES))
def test_every_bar_whose_outcome_is_known_has_one_row_and_a_label_or_a_reason(
    panel: Panel, task: Task, mode: Mode
) -> None:
    found = panel.labels(task, panel.sessions[0], panel.sessions[-1] + DAY, mode)
    n_known = max(len(panel.sessions) - task.label_span, 0)
    t, symbol = np.nonzero(~np.isnan(panel.close[:n_known]))
    assert found.symbol.tolist() == symbol.tolist()
    assert found.ts.tolist() == panel.sessions[t].tolist()
    assert set(found.reason) <= {"", *REASONS}
    for values in (found.label, found.fwd_return):
        assert np.array_equal(np.isnan(values), found.reason != "")
    n_without = int(np.isnan(found.label).sum())
    assert tuple(found.n_by_reason()) == REASONS
    assert sum(found.n_by_reason().values()) == n_without
    if mode == "last_close":
        assert found.n_by_reason()["no_exit_bar"] == 0


@settings(deadline=None)
@given(panels(), tasks, st.sampled_from(MODES), st.data())
def test_no_bar_after_known_at_matters(panel: Panel, task: Task, mode: Mode, data: Any) -> None:
    n = data.draw(st.integers(1, len(panel.sessions)))
    start, end = panel.sessions[0], panel.sessions[n - 1] + DAY
    whole = panel.labels(task, start, end, mode)
    past = panel.part(slice(n)).labels(task, start, end, mode)
    later = Panel(panel.close.copy(), panel.is_jump.copy(), panel.sessions)
    later.close[n:] = 7.0
    later.is_jump[n:] = True
    changed = later.labels(task, start, end, mode)
    for name in ROWS:
        for other in (past, changed):
            assert same(getattr(other, name), getattr(whole, name))
    assert past.n_by_reason() == whole.n_by_reason()
    assert (whole.known_at < end).all()


@settings(deadline=None)
@given(panels(), tasks, st.sampled_from(MODES))
def test_a_jump_takes_away_labels_that_span_it_and_changes_no_other(
    panel: Panel, task: Task, mode: Mode
) -> None:
    """Not those that enter at the flagged session's close: they are bought after the split."""
    start, end = panel.sessions[0], panel.sessions[-1] + DAY
    found = panel.labels(task, start, end, mode)
    calm = Panel(panel.close, np.zeros_like(panel.is_jump), panel.sessions)
    without = calm.labels(task, start, end, mode)
    is_suspect = found.reason == "suspect_jump"
    for name in ROWS:
        one, other = getattr(found, name), getattr(without, name)
        assert same(one[~is_suspect], other[~is_suspect])
    assert (without.reason[is_suspect] == "").all()
    entry = np.searchsorted(panel.sessions, found.entry_ts)
    at_exit = np.searchsorted(panel.sessions, found.exit_ts)
    spans = [
        panel.is_jump[a + 1 : b + 1, s].any()
        for a, b, s in zip(entry, at_exit, found.symbol, strict=True)
    ]
    assert np.array_equal(is_suspect, np.array(spans, bool) & (without.reason == ""))


@settings(deadline=None)
@given(panels(), tasks, st.sampled_from(MODES), st.data())
def test_windows_that_tile_time_give_the_labels_of_the_whole(
    panel: Panel, task: Task, mode: Mode, data: Any
) -> None:
    """Also from a piece and the label's span before it alone, which is what the chain reads."""
    sessions = panel.sessions
    n = len(sessions)
    cuts = sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=3))})
    whole = panel.labels(task, sessions[0], sessions[-1] + DAY, mode)
    pieces = []
    for a, b in pairwise(cuts):
        first = max(a - task.label_span, 0)
        part = panel.part(slice(first, b))
        pieces.append(part.labels(task, sessions[a], sessions[b - 1] + DAY, mode))
    for name in ROWS:
        parts = np.concatenate([getattr(p, name) for p in pieces])
        assert same(parts, getattr(whole, name))
    for reason, total in whole.n_by_reason().items():
        assert sum(p.n_by_reason()[reason] for p in pieces) == total


SESSIONS = np.array([f"2020-01-{d:02d}" for d in (2, 3, 6, 7, 8, 9)], "datetime64[D]")
TWO_DAYS = Task(task_id="t", kind="regression", horizon=2)


def example(*close: float, jumps: tuple[int, ...] = (), mode: Mode = "last_close") -> Labels:
    """Labels of one symbol on SESSIONS."""
    is_jump = np.isin(np.arange(len(close)), jumps)[:, None]
    panel = Panel(np.array(close)[:, None], is_jump, SESSIONS)
    return panel.labels(TWO_DAYS, SESSIONS[0], SESSIONS[-1] + DAY, mode)


def test_a_delisting_loss_stays_in_and_an_example_says_when_each_thing_happens() -> None:
    close = (10.0, 10.0, 8.0, 5.0, np.nan, np.nan)
    labels = example(*close)
    assert [str(d) for d in labels.ts] == ["2020-01-02", "2020-01-03", "2020-01-06"]
    assert [str(d) for d in labels.entry_ts] == ["2020-01-03", "2020-01-06", "2020-01-07"]
    assert [str(d) for d in labels.known_at] == ["2020-01-07", "2020-01-08", "2020-01-09"]
    assert labels.fwd_return.tolist() == pytest.approx([-0.5, 5 / 8 - 1, 0.0])
    assert labels.n_by_reason() == {"no_entry_bar": 0, "no_exit_bar": 0, "suspect_jump": 0}
    dropped = example(*close, mode="drop")
    assert dropped.ts.tolist() == labels.ts.tolist()
    assert dropped.known_at.tolist() == labels.known_at.tolist()
    assert dropped.reason.tolist() == ["", "no_exit_bar", "no_exit_bar"]
    assert dropped.fwd_return.tolist() == pytest.approx([-0.5, np.nan, np.nan], nan_ok=True)
    assert dropped.n_by_reason() == {"no_entry_bar": 0, "no_exit_bar": 2, "suspect_jump": 0}


def test_a_missing_entry_counts_before_a_missing_exit_and_both_before_a_jump() -> None:
    hole = np.nan
    for close, jumps, mode, reason in (
        ((10.0, hole, 5.0, hole, 5.0, 5.0), (2,), "drop", "no_entry_bar"),
        ((10.0, hole, 5.0, hole, 5.0, 5.0), (2,), "last_close", "no_entry_bar"),
        ((10.0, 10.0, 5.0, hole, 5.0, 5.0), (2,), "drop", "no_exit_bar"),
        ((10.0, 10.0, 5.0, hole, 5.0, 5.0), (2,), "last_close", "suspect_jump"),
        ((10.0, 10.0, 5.0, 5.0, 5.0, 5.0), (2,), "drop", "suspect_jump"),
        ((10.0, 10.0, 10.0, 5.0, 5.0, 5.0), (3,), "drop", "suspect_jump"),
        ((10.0, 5.0, 5.0, 5.0, 5.0, 5.0), (1,), "drop", ""),
        ((5.0, 5.0, 5.0, 5.0, 2.0, 2.0), (0, 4), "drop", ""),
    ):
        assert example(*close, jumps=jumps, mode=mode).reason[0] == reason


def test_every_array_of_labels_has_one_length() -> None:
    task = Task(task_id="t", kind="classification", horizon=1)
    sessions = np.arange(5).astype("datetime64[D]")
    for close in (np.ones((5, 3)), np.full((5, 3), np.nan), np.ones((5, 0))):
        panel = Panel(close, np.zeros(close.shape, bool), sessions)
        labels = panel.labels(task, sessions[0], sessions[-1])
        assert len({len(getattr(labels, name)) for name in ROWS}) == 1
        assert {f.name for f in fields(Labels)} == set(ROWS)
