"""Columns of the eight assets, with types and descriptions, for the catalogue of the web UI."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.market.features import FEATURE_SETS, KNOWN, AnyFeature
from quant_pipeline.settings import FeatureSettings, Settings

SCHEMA = "dagster/column_schema"
SYMBOL = ("symbol", "VARCHAR", "the instrument, upper case")
TS = ("ts", "DATE", "the session, in the exchange's calendar")
TASK = ("task_id", "VARCHAR", "the task of quant.toml")
PARTITION = ("partition_key", "VARCHAR", "the as-of partition")
OUTCOME = (
    ("label", "DOUBLE", "0 or 1 where the task has a threshold, else the forward return"),
    ("fwd_return", "DOUBLE", "return from the close of entry_ts to that of exit_ts, gross"),
    ("entry_ts", "DATE", "the session at whose close a score of ts can be traded"),
    ("exit_ts", "DATE", "the session that ends the return"),
    ("known_at", "DATE", "the session at whose close the outcome is known"),
)  # fmt: skip
MODEL = ("model_id", "VARCHAR", "sha256 of the model's file")
ORIGIN = ("origin", "VARCHAR", "live: scored before a later session came; backfill: later")
BATCH = ("price_batch_id", "BIGINT", "the newest ingested batch of prices that was known")

COLUMNS: Mapping[str, Sequence[tuple[str, str, str]]] = {
    "prices_daily": (
        SYMBOL, TS,
        ("batch_id", "BIGINT", "the delivery that the bar came with; earlier versions are kept"),
        ("open", "DOUBLE", "first price of the session, as delivered"),
        ("high", "DOUBLE", "highest price"),
        ("low", "DOUBLE", "lowest price"),
        ("close", "DOUBLE", "last price"),
        ("adj_index", "DOUBLE", "gross return since the first bar, splits and dividends included"),
        ("volume", "DOUBLE", "shares traded"),
    ),
    "labels": (
        SYMBOL, TS, TASK, *OUTCOME,
        ("reason", "VARCHAR", "why there is no label: no_entry_bar, no_exit_bar, suspect_jump"),
    ),
    "walkforward_folds": (
        PARTITION, TASK,
        ("window_start", "DATE", "first session of the training window"),
        ("fold", "BIGINT", "number of the fold, oldest first"),
        ("part", "VARCHAR", "train, stop (early stopping) or test"),
        ("block", "BIGINT", "number of the block of sessions within the part"),
        ("start_ts", "DATE", "first session of the block"),
        ("end_ts", "DATE", "last session of the block"),
        ("first_kept", "DATE", "first session that the purge left"),
        ("last_kept", "DATE", "last session that the purge left"),
        ("n_rows", "BIGINT", "examples that the fold uses"),
        ("n_purged", "BIGINT", "examples dropped: their labels reach into a later window"),
    ),
    "lgbm_model": (
        ("model_id", "VARCHAR", "sha256 of the model's file, models/<model_id>.joblib"),
        TASK, PARTITION,
        ("asof", "DATE", "last day of the partition: nothing later was known"),
        ("status", "VARCHAR", "ready, retired or pruned"),
        ("metrics", "JSON", "out-of-sample metrics of the folds' test windows"),
        ("fold_metrics", "JSON", "windows and metrics of each fold"),
        ("test_series", "JSON", "RankIC and top minus bottom of each test session"),
        ("importance", "JSON", "shares of gain and splits, and their spread over the folds"),
        ("features", "JSON", "names of the features, in the order of the matrix"),
        ("n_rows", "BIGINT", "examples that it learned from"),
        ("rounds", "BIGINT", "boosting rounds: the median of the folds' best"),
        BATCH,
        ("data_fingerprint", "VARCHAR", "of the examples, value by value"),
        ("recipe", "VARCHAR", "of task, features, universe and settings"),
        ("chosen_asof", "DATE", "since when the settings are known"),
        ("settings", "JSON", "every setting that decides the model"),
        ("environment", "JSON", "versions that its bytes depend on"),
    ),
    "predictions": (
        SYMBOL, TS, MODEL, TASK,
        ("score", "DOUBLE", "a probability (classification), a return (regression), a rank"),
        ("generated_at", "TIMESTAMPTZ", "when it was computed"),
        ("asof", "DATE", "the model's as-of date, always before ts"),
        ORIGIN, BATCH,
    ),
    "prediction_outcomes": (
        TASK, MODEL, TS,
        ("known_at", "DATE", "when the session's labels became known; it decides the partition"),
        ORIGIN,
        ("n", "BIGINT", "scores with a known outcome"),
        ("ic", "DOUBLE", "correlation of score and forward return across symbols"),
        ("rank_ic", "DOUBLE", "the same of their ranks"),
        ("hit_rate", "DOUBLE", "share of scores on the right side"),
        ("base_rate", "DOUBLE", "share of labels that are 1 (classification)"),
        ("top_minus_bottom", "DOUBLE", "mean return of the top fifth less that of the bottom one"),
    ),
}  # fmt: skip


def catalogue(settings: Settings) -> dict[str, dict[str, Any]]:
    """Metadata of each asset's definition: its table's name and columns.

    Of a user's own features only the modules are named: loading definitions runs no code of theirs.
    """
    own = settings.features.modules
    features = [*feature_columns(_built_in(settings.features))]
    if own:
        features.append(("…", "FLOAT", f"features of {', '.join(own)}: see the materializations"))
    frame = [*COLUMNS["labels"][:3], *OUTCOME, *features]
    schemas = {
        **{asset: _schema(columns) for asset, columns in COLUMNS.items()},
        "features_daily": features_schema(features),
        "training_frame": _schema(frame),
    }
    return {asset: {SCHEMA: schema, **named(asset)} for asset, schema in schemas.items()}


def named(asset: str) -> dict[str, Any]:
    """The name of an asset's table; models are rows of the registry, in SQLite."""
    return {"dagster/table_name": "models" if asset == "lgbm_model" else asset}


def schema_of_own(workspace: Workspace) -> dict[str, Any]:
    """Metadata with the schema of features_daily, if features of the user's own are in it."""
    if not workspace.settings.features.modules:
        return {}
    return {SCHEMA: features_schema(feature_columns(workspace.features))}


def features_schema(features: Iterable[tuple[str, str, str]]) -> dg.TableSchema:
    """The schema of features_daily with some features."""
    return _schema(
        [
            SYMBOL, TS, *features,
            ("in_universe", "BOOLEAN", "trainable, scored and judged rows are those in it"),
            ("lacks_history", "BOOLEAN", "fewer sessions than features.min_sessions"),
        ]
    )  # fmt: skip


def feature_columns(features: Iterable[AnyFeature]) -> list[tuple[str, str, str]]:
    """Features as columns, described by their formulas."""
    return [
        (f.name, "FLOAT", f.formula or f"a function of {', '.join(f.inputs)}") for f in features
    ]


def _built_in(settings: FeatureSettings) -> list[AnyFeature]:
    """Those that quant.toml asks for, of the ones that need no code of the user's own."""
    wanted = settings.include or tuple(FEATURE_SETS[settings.set])
    return [f for name, f in KNOWN.items() if name in wanted and name not in settings.exclude]


def _schema(columns: Sequence[tuple[Any, ...]]) -> dg.TableSchema:
    return dg.TableSchema(
        [dg.TableColumn(name, type, description) for name, type, description in columns]
    )
