"""What pages share: the home, what is remembered of it, its filters and its states."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any
from urllib.parse import urlsplit

import altair as alt
import pandas as pd
import streamlit as st

from quant_pipeline.chain import shown
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData, QuantError
from quant_pipeline.faces.charts import number
from quant_pipeline.faces.page_server import DAGSTER
from quant_pipeline.settings import Home, Task
from quant_pipeline.stores.locks import writer_of

ORIGINS = {"live": "Live", "backfill": "Backfill"}
NOTHING = "–"
TOO_FEW = "too few sessions for these standard errors"


@st.cache_resource(max_entries=4, show_spinner=False)
def _open(root: str, _written: int) -> Workspace:
    return shown.without_waiting(Workspace.open(Home.from_environment()))


def workspace() -> Workspace:
    """The home, opened again when quant.toml changes."""
    home = Home.from_environment()
    written = home.settings_file.stat().st_mtime_ns if home.settings_file.exists() else 0
    return _open(str(home.root), written)


@st.cache_resource(max_entries=128, show_spinner="Reading …")
def _remember(name: str, stamp: Any, arguments: Any, _work: Callable[[], Any]) -> Any:
    return _work()


def remembered(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a reading function gives of the home, kept until something is written again.

    Arguments are plain; a task is meant by its id. What comes back must not be changed.
    """
    ws = workspace()

    def call() -> Any:
        return work(ws, *(ws.settings.task(a.removeprefix("task:")) if str(a).startswith("task:")
                          else a for a in arguments))  # fmt: skip

    name = f"{work.__module__}.{work.__qualname__}"
    return _remember(name, shown.stamp(ws), arguments, call)


def of(task: Task) -> str:
    """A task as an argument of `remembered`."""
    return f"task:{task.task_id}"


@contextmanager
def section(title: str = "") -> Iterator[None]:
    """A part of a page: if it has nothing to show, or cannot, it says what to do."""
    if title:
        st.subheader(title)
    try:
        yield
    except NoData as error:
        st.info(str(error), icon=":material/info:")
    except QuantError as error:
        st.error(str(error), icon=":material/error:")


def begin(title: str, words: str) -> None:
    """The head of a page, and who is writing at the moment."""
    st.title(title)
    st.caption(words)
    holder = writer_of(workspace().home.database.with_name("quant.duckdb.lock"))
    if holder:
        st.caption(f":material/edit: Being written by {holder}; this is what was published last.")


def choose_task(place: Any = st) -> Task:
    """The task that a page is about; it stays when pages change."""
    tasks = {task.task_id: task for task in workspace().settings.tasks}
    kept = st.session_state.get("task")
    index = list(tasks).index(kept) if kept in tasks else 0
    chosen: str = place.selectbox("Task", list(tasks), index=index)
    st.session_state["task"] = chosen
    return tasks[chosen]


def choose_period(first: date, last: date, place: Any = st) -> tuple[date, date]:
    """A range of sessions."""
    given = place.date_input("Sessions", (first, last), min_value=first, max_value=last)
    return given if isinstance(given, tuple) and len(given) == 2 else (first, last)


def show(chart: Any) -> None:
    """A chart under its title, as wide as its place; its description is for screen readers."""
    st.markdown(f"**{chart.title}**")
    shown = chart.copy(deep=False)
    shown.title = alt.Undefined
    st.altair_chart(shown, width="stretch")


def plus_minus(mean: float | None, error: float | None, form: str = ".4f") -> str:
    """A mean with its standard error."""
    return f"{number(mean, '+' + form)} ± {number(error, form)}"


def reachable(address: str, page: str) -> str:
    """Dagster's address with the host name by which the browser has reached the page.

    Both are on one machine, and what Dagster listens on (0.0.0.0) is no name for a browser.
    """
    known, asked = urlsplit(address), urlsplit(page)
    host = asked.hostname or known.hostname or ""
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    place = f"[{host}]" if ":" in host else host
    return f"{known.scheme}://{place}:{known.port}"


def dagster_address() -> str:
    """Where Dagster's web UI is, if it runs beside this page, else nothing."""
    address = os.environ.get(DAGSTER)
    return reachable(address, str(st.context.url or "")) if address else ""


def dagster_link(words: str, path: str = "") -> None:
    """A link into Dagster's web UI, if it runs beside this page."""
    address = dagster_address()
    if address:
        st.link_button(words, f"{address}/{path}", icon=":material/open_in_new:")


def csv_of(rows: pd.DataFrame) -> bytes:
    """A frame as CSV: dates as ISO, floats in full."""
    return rows.to_csv(index=False, date_format="%Y-%m-%d").encode()
