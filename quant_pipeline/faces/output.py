"""How results, progress and errors reach people and programs."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

import typer

Row = Mapping[str, Any]
LONGEST_WORD = 4096


def emit(data: Any, as_json: bool, show: Callable[[], None]) -> None:
    """Print data as JSON for programs, or let `show` print it for people."""
    if as_json:
        typer.echo(json.dumps(data, default=str, allow_nan=False, indent=2))
    else:
        show()


def print_table(rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> None:
    """Rows as aligned text: numbers to the right, a missing value as a dash.

    `columns` maps keys to headings, in order; all keys of the first row if it is not given.
    """
    if not rows:
        return
    shown = columns or {key: key for key in rows[0]}
    cells = [[cell(row.get(key)) for key in shown] for row in rows]
    is_number = [all(isinstance(row.get(k), int | float | None) for row in rows) for k in shown]
    heads = list(shown.values())
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    for line in [heads, *cells]:
        parts = [
            text.rjust(w) if right else text.ljust(w)
            for text, w, right in zip(line, widths, is_number, strict=True)
        ]
        typer.echo("  ".join(parts).rstrip())


def cell(value: Any) -> str:
    """One value for people."""
    if value is None or value != value:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
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
    """Tell what is being done: a bar on a terminal, plain lines elsewhere; on stderr."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("starting", total=None)

        def tell(what: str, done: int, total: int) -> None:
            bars.update(bar, description=what, completed=done, total=total)

        yield tell


def _plain_progress() -> Callable[[str, int, int], None]:
    began = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        if done < total:
            count = f" ({done + 1} of {total})" if total > 1 else ""
            say(f"[{time.monotonic() - began:5.0f} s] {what}{count}")

    return tell


def parse_day(text: str) -> date:
    """A date as YYYY-MM-DD; anything else is wrong usage."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date; write it as 2021-11-30") from None
