"""How results, progress and errors reach people and programs."""

import csv
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

import typer

Row = Mapping[str, Any]
LONGEST_WORD = 4096
QUIET = "--quiet"


def emit(data: Any, as_json: bool, show: Callable[[], None], as_csv: bool = False) -> None:
    """Print data as JSON, or rows as CSV, for programs, or let `show` print it for people."""
    if as_csv:
        print_csv(data)
    elif as_json:
        typer.echo(json.dumps(_without_nan(data), default=str, allow_nan=False, indent=2))
    else:
        show()


def _without_nan(data: Any) -> Any:
    """The same with null for numbers that are none, which JSON has no word for.

    >>> _without_nan({"a": [1.5, float("nan")], "b": float("-inf")})
    {'a': [1.5, None], 'b': None}
    """
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _without_nan(value) for key, value in data.items()}
    return [_without_nan(v) for v in data] if isinstance(data, list | tuple) else data


def print_csv(rows: Sequence[Row]) -> None:
    """Rows as CSV: every key a column, a missing value empty, what is nested as JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = csv.DictWriter(sys.stdout, names, lineterminator="\n")
    out.writeheader()
    for row in rows:
        out.writerow({name: _csv_cell(row.get(name)) for name in names})


def _csv_cell(value: Any) -> Any:
    if value is None or value != value:
        return ""
    return json.dumps(value, default=str) if isinstance(value, dict | list | tuple) else value


def print_table(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> None:
    """Rows as aligned text: numbers to the right, a missing value as a dash.

    `columns` maps keys to headings, in order; all keys of the first row if it is not given.
    """
    if not rows:
        return
    shown = columns or {key: key for key in rows[0]}
    cells = [[cell(row.get(key), key) for key in shown] for row in rows]
    is_number = [all(isinstance(row.get(k), int | float | None) for row in rows) for k in shown]
    heads = list(shown.values())
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    for line in [heads, *cells]:
        parts = [
            text.rjust(w) if right else text.ljust(w)
            for text, w, right in zip(line, widths, is_number, strict=True)
        ]
        typer.echo("  ".join(parts).rstrip())


def cell(value: Any, name: str = "") -> str:
    """One value for people; `is_` begins a name of what is so or not, `n_` one of a number.

    >>> cell(7.0, "rounds"), cell(7.0, "n_sessions"), cell(0.0, "is_short"), cell(7.0)
    ('7', '7', 'no', '7.0000')
    """
    if value is None or value != value:
        return "–"
    if isinstance(value, bool) or name.startswith("is_"):
        return "yes" if value else "no"
    if (name.startswith(("n_", "rounds"))) and float(value).is_integer():
        return f"{int(value):,}"
    if isinstance(value, float):
        is_large_count = abs(value) >= 1000 and value.is_integer()
        return f"{value:,.0f}" if is_large_count else f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def count(n: int, word: str) -> str:
    """A number with its word.

    >>> count(1, "row"), count(1200, "symbol")
    ('1 row', '1,200 symbols')
    """
    return f"{n:,} {word}" + ("" if n == 1 else "s")


def say(text: str = "") -> None:
    """Tell a person how things go, apart from results."""
    typer.echo(text, err=True)


def advise(text: str) -> None:
    """Tell a person at a terminal what to type next; programs and logs get nothing."""
    if sys.stderr.isatty() and QUIET not in sys.argv[1:]:
        say(f"Next: {text}")


def printable(text: str) -> str:
    """A message whose control characters, which could change a terminal, are written as codes."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def strange_word(word: str) -> str:
    """What is wrong with a word of a command whatever it stands for, or nothing."""
    if not word:
        return "A word of the command is empty. Is a variable of the shell not set?"
    if len(word) > LONGEST_WORD:
        return f"A word of the command has {len(word)} characters: {printable(word[:40])}…"
    try:
        _ = word.encode()
    except UnicodeEncodeError:
        return f"A word of the command is not UTF-8: {word!a}."
    return "A word of the command has a NUL character." if "\0" in word else ""


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Tell what is being done: a bar on a terminal, plain lines elsewhere; on stderr.

    How long the rest may take is told once a part of it is done; nothing at all with --quiet. A
    Ctrl-C that was swallowed ends the command when it tells of its next step.
    """
    with _telling() as tell, _heeding_ctrl_c() as heed:

        def told(what: str, done: int, total: int) -> None:
            heed()
            tell(what, done, total)

        yield told


@contextmanager
def _heeding_ctrl_c() -> Iterator[Callable[[], None]]:
    """Gives what raises KeyboardInterrupt if Ctrl-C was pressed before.

    It is raised at once, too. But Python drops what is raised within a callback that C calls, as
    LightGBM does to log ("Exception ignored on calling ctypes callback function").
    """
    pressed: list[int] = []

    def heed() -> None:
        if pressed:
            raise KeyboardInterrupt

    def press(number: int, _frame: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield heed
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield heed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _telling() -> Iterator[Callable[[str, int, int], None]]:
    if QUIET in sys.argv[1:]:
        yield lambda _what, _done, _total: None
        return
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("starting", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bars.update(bar, description=what, completed=done, total=total)

        yield tell


def _plain_progress() -> Callable[[str, int, int], None]:
    began = time.monotonic()
    part = [0, began]  # how many there are of what is being done, and since when

    def tell(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if total != part[0] or not done:
            part[:] = total, now
        if done < total:
            count = f" ({done + 1} of {total})" if total > 1 else ""
            left = (now - part[1]) / done * (total - done) if done else 0.0
            rest = f", about {in_time(left)} left" if left >= 10.0 else ""
            say(f"[{now - began:5.0f} s] {what}{count}{rest}")

    return tell


def in_time(seconds: float) -> str:
    """A duration for people.

    >>> in_time(34.4), in_time(250), in_time(8000)
    ('34 s', '4 min', '2.2 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def parse_day(text: str) -> date:
    """A date as YYYY-MM-DD; anything else is wrong usage."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date; write it as 2021-11-30") from None
