"""A home in a notebook: `quant_pipeline.open(".")`; frames out, no Dagster, nothing is written."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import pandas as pd
import pyarrow as pa

from quant_pipeline.chain import shown
from quant_pipeline.chain.model_content import read_boosters
from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.errors import NoData, SettingsError, StoreError, unknown_name
from quant_pipeline.faces.symbols import require_scored, spelled
from quant_pipeline.settings import Home, Settings
from quant_pipeline.stores.meta import Model
from quant_pipeline.stores.series import query

Day = date | np.datetime64 | str | None


def open_home(folder: Path | str = ".") -> "NotebookHome":
    """The home in a folder; raises SettingsError if it has no quant.toml."""
    home = Home(Path(folder).expanduser().resolve())
    if not home.settings_file.exists():
        raise SettingsError(
            f"{home.root} has no quant.toml, so it is no home of quant_pipeline. "
            "Run `quant init` there, or name another folder."
        )
    return NotebookHome(Workspace.open(home))


@dataclass(frozen=True)
class NotebookHome:
    """What is stored in a home, as frames.

    Scores and outcomes are read from what is published, so they wait for nobody. Examples and
    features come from the database: it is opened to read, and closed before they are handed over.
    """

    workspace: Workspace

    def __repr__(self) -> str:
        return f"<home {self.workspace.home.root}>"

    @property
    def settings(self) -> Settings:
        """quant.toml, as it is used."""
        return self.workspace.settings

    @overload
    def predictions(
        self, task: str | None = ..., start: Day = ..., end: Day = ..., symbol: str | None = ...,
        *, arrow: Literal[False] = ...,
    ) -> pd.DataFrame: ...  # fmt: skip
    @overload
    def predictions(
        self, task: str | None = ..., start: Day = ..., end: Day = ..., symbol: str | None = ...,
        *, arrow: Literal[True],
    ) -> pa.Table: ...  # fmt: skip
    def predictions(
        self, task: str | None = None, start: Day = None, end: Day = None,
        symbol: str | None = None, *, arrow: bool = False,
    ) -> pd.DataFrame | pa.Table:  # fmt: skip
        """Stored out-of-sample scores, by session, task and symbol.

        Columns symbol, ts, model_id, task_id, score, generated_at, asof, origin, price_batch_id and
        score_percentile (0 to 1, within its session). NoData if there is no score of the symbol.
        """
        self._require_task(task)
        name = None if symbol is None else spelled(symbol)
        rows = shown.read_predictions(self.workspace, task, _day(start), _day(end), name)
        if name is not None and not len(rows):
            require_scored(self.workspace.published, name)
        return rows if arrow else _frame(rows)

    def outcomes(self, task: str) -> pd.DataFrame:
        """Judged sessions of a task: RankIC, quantile returns, turnover and so on, one row each."""
        return shown.read_judged(self.workspace, self.settings.task(task))

    def returns(self, task: str) -> pd.DataFrame:
        """Scores with what followed: symbol, ts, score, fwd_return, of known outcomes only."""
        parts = [
            shown.scores_with_returns(self.workspace, model)
            for model in self.workspace.meta.models(self.settings.task(task).task_id)
        ]
        found = [part for part in parts if len(part)]
        if not found:
            raise NoData(shown.NO_OUTCOMES)
        return pd.concat(found, ignore_index=True).sort_values(["ts", "symbol"], ignore_index=True)

    def models(self, task: str | None = None) -> pd.DataFrame:
        """Trained models, oldest as-of first, with the metrics of their folds' test windows."""
        self._require_task(task)
        rows = [
            {
                "model_id": m.model_id, "task_id": m.task_id, "asof": m.asof, "status": m.status,
                "rows": m.n_rows, "rounds": m.rounds, "recipe": m.recipe, **m.metrics,
            }
            for m in self.workspace.meta.models(task)
        ]  # fmt: skip
        return _dated(pd.DataFrame(rows))

    def load_model(self, model_id: str) -> "NotebookModel":
        """The one model whose id begins so; its file is checked before anything opens it."""
        model = self.workspace.meta.model(model_id)
        return NotebookModel(self.workspace, model, tuple(read_boosters(self.workspace, model)))

    def training_frame(
        self, task: str, start: Day = None, end: Day = None, columns: Iterable[str] | None = None,
        *, arrow: bool = False,
    ) -> Any:  # fmt: skip
        """Examples that became known in ``[start, end]``: symbol, ts, known_at, label, features.

        Some `columns` take less time and memory than all.
        """
        self._require_task(task)
        if columns is not None:
            columns = list(columns)
            self._require_columns("training_frame", columns)
        chosen = "*" if columns is None else _names(["symbol", "ts", "known_at", *columns])
        sql = (
            f"SELECT {chosen} FROM training_frame WHERE task_id = ? "
            "AND known_at >= coalesce(?, DATE '0001-01-01') "
            "AND known_at <= coalesce(?, DATE '9999-12-31') ORDER BY ts, symbol"
        )
        return self._query(sql, [task, _day(start), _day(end)], arrow=arrow)

    def sql(self, text: str, *parameters: Any, arrow: bool = False) -> Any:
        """The answer to a query on the database, which is closed again before it is given."""
        return self._query(text, list(parameters), arrow=arrow)

    def _query(self, sql: str, parameters: list[Any], *, arrow: bool) -> Any:
        if not self.workspace.home.database.exists():
            raise NoData("Nothing is stored yet. Run `quant ingest PATH`, or `quant demo`.")
        with self.workspace.series.reading("a notebook") as con:
            rows = query(con, sql, parameters)
        return rows if arrow else _frame(rows)

    def _require_columns(self, table: str, columns: Iterable[str]) -> None:
        known = self._query(f"SELECT * FROM {table} LIMIT 0", [], arrow=True).column_names
        for name in columns:
            if name not in known:
                raise SettingsError(
                    f"{unknown_name(f'column of {table}', name, known)} "
                    f'`home.sql("DESCRIBE {table}")` lists them.'
                )

    def _require_task(self, task: str | None) -> None:
        if task is not None:
            self.settings.task(task)


@dataclass(frozen=True)
class NotebookModel:
    """A model to score frames with."""

    workspace: Workspace
    row: Model
    boosters: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"<model {self.row.model_id[:12]} of {self.row.task_id} as of {self.row.asof}>"

    @property
    def features(self) -> list[str]:
        """The features that it needs, in its order."""
        return list(self.row.features)

    def score(self, frame: pd.DataFrame) -> "pd.Series[float]":
        """A score for each row of a frame that has the model's features, in any order of columns.

        Rows of sessions up to the model's as-of are in sample: it learned from them.
        """
        from quant_pipeline.ml.score import score_rows

        missing = [name for name in self.row.features if name not in frame.columns]
        if missing:
            raise StoreError(
                f"The frame lacks {len(missing)} of {len(self.row.features)} features of model "
                f"{self.row.model_id[:12]}: {', '.join(missing[:5])}."
            )
        names = tuple(self.row.features)
        x = np.ascontiguousarray(frame[list(names)].to_numpy(np.float32))
        return pd.Series(score_rows(self.boosters, x, names, names), frame.index, name="score")


def _day(value: Day) -> date | None:
    """A date, a text like 2021-11-30, or what pandas and NumPy have for one."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            return date.fromisoformat(value)
        return date.fromisoformat(pd.Timestamp(value).strftime("%Y-%m-%d"))
    except (TypeError, ValueError):
        raise SettingsError(f"{value!r} is no date. Write it like 2021-11-30.") from None


def _names(columns: Iterable[str]) -> str:
    unique = dict.fromkeys(columns)
    return ", ".join('"' + name.replace('"', '""') + '"' for name in unique)


def _frame(rows: pa.Table) -> pd.DataFrame:
    found: pd.DataFrame = rows.to_pandas()
    return _dated(found)


def _dated(frame: pd.DataFrame) -> pd.DataFrame:
    """Dates as pandas has them."""
    dates = [n for n in frame.columns if n in ("ts", "asof", "known_at", "entry_ts", "exit_ts")]
    return frame.assign(**{name: pd.to_datetime(frame[name]) for name in dates})
