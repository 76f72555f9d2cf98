"""The sections of quant.toml, one class each; their defaults are the shipped settings."""

from collections.abc import Sequence
from datetime import date
from math import comb, inf
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

MAX_COMBINATIONS = 252
MOST_INT, MOST, LONGEST = 2**31 - 1, 1e15, 1000  # of a number, of a text
IDENTIFIER = r"^[A-Za-z][A-Za-z0-9_]{0,62}$"


class Section(BaseModel):
    """A frozen table of quant.toml; a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_plausible(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse what nobody means: true for a number, numbers and texts without measure."""
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and wanted in (int, float):
            raise ValueError("a number is needed")
        if isinstance(value, int | float) and (
            (MOST_INT if wanted is int else MOST) < abs(value) < inf
        ):
            raise ValueError("no such number can be meant")
        if isinstance(value, str) and (len(value) > LONGEST or not value.isprintable()):
            raise ValueError(f"a text of at most {LONGEST} characters in one line is needed")
        return value


class GridSettings(Section):
    """The one grid of as-of partitions."""

    cadence: Literal["monthly", "weekly", "daily"] = "monthly"
    start: date = Field(default=date(2010, 1, 1), ge=date(1900, 1, 1), le=date(2100, 1, 1))
    timezone: str = "Asia/Manila"

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"no time zone {name}; names look like America/New_York")
        return name

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)


class IngestSettings(Section):
    """When a delivered value counts as the stored one."""

    tolerance: float = Field(default=1e-4, gt=0, lt=0.1)
    max_file_mib: int = Field(default=4096, gt=0)
    duplicates: Literal["reject", "last"] = "reject"
    sources: tuple[str, ...] = ()
    columns: dict[str, str] = Field(default_factory=dict)
    symbol_from_name: bool = False
    date_format: str = ""
    decimal: Literal[".", ","] = "."
    header: tuple[str, ...] = ()


class SessionSettings(Section):
    """Which dates are market sessions, decided from the past alone."""

    calendar: str = ""
    min_share: float = Field(default=0.5, gt=0, le=1)
    active_dates: int = Field(default=20, ge=1)


class SealSettings(Section):
    """When a window is complete, so that it may train."""

    coverage: float = Field(default=0.8, ge=0, le=1)
    max_wait_sessions: int = Field(default=3, ge=1)


class JumpSettings(Section):
    """Which one-session moves of unadjusted prices look like splits.

    `min_move` is a log move: 0.33 is -28% or +39%, between 4:3 (0.29) and 3:2 (0.41).
    """

    is_flagged: bool = True
    min_move: float = Field(default=0.33, gt=0)


class UniverseSettings(Section):
    """Which symbols are trained on, scored and judged on a session, from what was known then."""

    min_sessions: int = Field(default=60, ge=1)
    value_sessions: int = Field(default=60, ge=1)
    min_median_value: float = Field(default=1_000_000.0, ge=0)
    memberships: bool = False


class LabelSettings(Section):
    """What becomes of a label whose symbol has no bar at the exit session."""

    missing_exit: Literal["last_close", "drop"] = "last_close"


class FeatureSettings(Section):
    """Which features are computed, and how much history a row of them needs."""

    set: Literal["alpha158", "core"] = "alpha158"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    modules: tuple[Annotated[str, Field(pattern=IDENTIFIER)], ...] = ()
    min_sessions: int = Field(default=60, ge=1)


class Task(Section):
    """One thing to predict: what the label is, what is learned from it, and how rows weigh."""

    task_id: Annotated[str, Field(pattern=IDENTIFIER)]
    kind: Literal["classification", "regression", "ranking"]
    horizon: int = Field(ge=1, le=260)
    entry_lag: int = Field(default=1, ge=1, le=20)
    above: Literal["threshold", "median"] = "threshold"
    threshold: float = 0.0
    normalize: Literal["none", "demean", "rank"] = "none"
    winsorize: float = Field(default=0.0, ge=0, lt=0.5)
    grades: int = Field(default=5, ge=2, le=31)
    weights: Literal["none", "recency", "uniqueness"] = "none"
    half_life: int = Field(default=250, ge=1)

    @property
    def label_span(self) -> int:
        """Sessions from a score to the session on which its label is known."""
        return self.entry_lag + self.horizon

    @property
    def meaning(self) -> tuple[Any, ...]:
        """What decides the stored labels of the task."""
        is_binary = self.kind == "classification" and self.above == "threshold"
        return self.task_id, self.horizon, self.entry_lag, self.threshold if is_binary else None

    @property
    def rows(self) -> tuple[int, int]:
        """Tasks that are alike here have the same rows, returns and folds."""
        return self.horizon, self.entry_lag

    @model_validator(mode="after")
    def _means_something(self) -> "Task":
        for name, kind in (
            ("above", "classification"), ("threshold", "classification"),
            ("normalize", "regression"), ("winsorize", "regression"), ("grades", "ranking"),
        ):  # fmt: skip
            if self.kind != kind and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for {kind}; {self.task_id} is a {self.kind}")
        return self


def alike(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks in groups that share rows, returns and folds, in the order of their first ones."""
    found: dict[tuple[int, int], list[Task]] = {}
    for task in tasks:
        found.setdefault(task.rows, []).append(task)
    return list(found.values())


class FoldSettings(Section):
    """The validation protocol, in whole sessions."""

    protocol: Literal["walk_forward", "cpcv"] = "walk_forward"
    window: Literal["expanding", "rolling"] = "expanding"
    n_groups: int = Field(default=6, ge=3, le=20)
    n_test_groups: int = Field(default=2, ge=1)
    n_folds: int = Field(default=3, ge=1)
    min_train_sessions: int = Field(default=240, ge=20)
    stop_sessions: int = Field(default=60, ge=5)
    test_sessions: int = Field(default=60, ge=5)
    embargo_sessions: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _leaves_groups_to_train(self) -> "FoldSettings":
        if self.n_test_groups >= self.n_groups - 1:
            raise ValueError(
                f"n_test_groups is {self.n_test_groups} of n_groups = {self.n_groups}: at least "
                "two groups have to be left to train and to stop on"
            )
        n_folds = comb(self.n_groups, self.n_test_groups)
        if n_folds > MAX_COMBINATIONS:
            raise ValueError(
                f"{self.n_test_groups} of {self.n_groups} groups make {n_folds} combinations, each "
                f"a fold to train; at most {MAX_COMBINATIONS} are allowed"
            )
        return self


class TrainSettings(Section):
    """How a model is fitted."""

    window_sessions: int = Field(default=2500, ge=100)
    seeds: int = Field(default=1, ge=1, le=100)
    min_rows: int = Field(default=2000, ge=40)
    max_rounds: int = Field(default=300, ge=1)
    early_stopping_rounds: int = Field(default=30, ge=1)
    seed: int = Field(default=20240229, ge=0, lt=2**31)
    threads: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=0.05, gt=0, le=1)
    num_leaves: int = Field(default=15, ge=2)
    max_depth: int = Field(default=-1, ge=-1)
    min_data_in_leaf: int = Field(default=1000, ge=1)
    feature_fraction: float = Field(default=0.2, gt=0, le=1)
    bagging_fraction: float = Field(default=0.7, gt=0, le=1)
    lambda_l1: float = Field(default=0.0, ge=0)
    lambda_l2: float = Field(default=100.0, ge=0)
    max_bin: int = Field(default=63, ge=2, le=65535)
    bin_sample_rows: int = Field(default=20_000, ge=100)


class MetricSettings(Section):
    """How scores are judged; none of it changes a model or a score."""

    min_names: int = Field(default=20, ge=2)
    quantile: float = Field(default=0.2, gt=0, le=0.5)
    top_k: int = Field(default=20, ge=1)
    cost_bps: float = Field(default=10.0, ge=0)


CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$"


class ScheduleSettings(Section):
    """When jobs run by themselves, by the clock of the exchange (grid.timezone)."""

    daily: bool = False
    daily_at: str = Field(default="18:00", pattern=CLOCK)
    days: Literal["weekdays", "every_day"] = "weekdays"
    retry_minutes: int = Field(default=30, ge=5, le=720)
    late_after: str = Field(default="22:00", pattern=CLOCK)
    retrain: bool = False
    retrain_at: str = Field(default="06:00", pattern=CLOCK)
    retrain_on: Literal[
        "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "every_day"
    ] = "saturday"

    @model_validator(mode="after")
    def _is_late_after_the_job(self) -> "ScheduleSettings":
        if self.late_after <= self.daily_at:
            raise ValueError(
                f"late_after ({self.late_after}) must be later on the same day than daily_at "
                f"({self.daily_at})"
            )
        return self


class ChampionSettings(Section):
    """When a newly trained model takes over from the one that serves."""

    rule: Literal["unless_worse", "if_better", "newest"] = "unless_worse"
    z: float = Field(default=2.0, ge=0)
    min_sessions: int = Field(default=60, ge=3)
    insufficient: Literal["promote", "keep"] = "promote"


class CheckSettings(Section):
    """From where on a check of stored data warns or fails; none of it changes a result."""

    max_gap_days: int = Field(default=7, ge=1)
    max_missing_sessions: int = Field(default=0, ge=0)
    max_stale_share: float = Field(default=0.02, ge=0, le=1)
    max_jumps: int = Field(default=0, ge=0)
    max_move: float = Field(default=1.4, gt=0)
    min_coverage: float = Field(default=0.8, ge=0, le=1)
    max_late_sessions: int = Field(default=3, ge=0)
    max_null_share: float = Field(default=0.5, ge=0, le=1)
    feature_psi: float = Field(default=0.25, gt=0)
    max_drifted_share: float = Field(default=0.75, ge=0, le=1)
    max_feature_psi: float = Field(default=4.0, gt=0)
    min_base_rate: float = Field(default=0.05, ge=0, le=1)
    max_base_rate: float = Field(default=0.95, ge=0, le=1)
    min_scored_share: float = Field(default=0.95, ge=0, le=1)
    min_distinct_share: float = Field(default=0.05, ge=0, le=1)
    score_psi: float = Field(default=2.0, gt=0)
    rank_ic_z: float = Field(default=3.0, gt=0)
    min_history: int = Field(default=6, ge=2)


class AlertSettings(Section):
    """Who is told of what goes wrong while the daemon runs."""

    webhook: str = Field(default="", pattern=r"^(https?://\S+)?$")
    command: tuple[str, ...] = ()
    on: tuple[Literal["run_failed", "check_failed", "data_late"], ...] = (
        "run_failed",
        "check_failed",
        "data_late",
    )
    severity: Literal["WARN", "ERROR"] = "ERROR"
    timeout_seconds: float = Field(default=10.0, gt=0, le=20)


class HousekeepingSettings(Section):
    """How long what Dagster notes is kept, and when the database is written anew."""

    weekly: bool = False
    at: str = Field(default="05:00", pattern=CLOCK)
    keep_days: int = Field(default=90, ge=1)
    compact_from: float = Field(default=0.5, gt=0, le=1)


class ProofSettings(Section):
    """What is proved by itself at night."""

    nightly: bool = False
    at: str = Field(default="03:00", pattern=CLOCK)
    sessions: int = Field(default=5, ge=1)


class StoreSettings(Section):
    """Where runs and the registry are kept, how long writers wait, and how much memory is used."""

    postgres: str = Field(default="", pattern=r"^(postgres(ql)?://\S+)?$")
    lock_wait_seconds: float = Field(default=60.0, ge=0)
    memory_gib: float = Field(default=4.0, ge=0.5)
