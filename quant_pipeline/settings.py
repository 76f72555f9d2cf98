"""Where things are (`Home`) and what the experiment is (`Settings`: quant.toml, QUANT_*)."""

import os
import re
import tomllib
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import (
    SettingsError as UnreadableVariable,
)

from quant_pipeline.errors import SettingsError, unknown_name
from quant_pipeline.sections import (
    IDENTIFIER,
    AlertSettings,
    ChampionSettings,
    CheckSettings,
    FeatureSettings,
    FoldSettings,
    GridSettings,
    HousekeepingSettings,
    IngestSettings,
    JumpSettings,
    LabelSettings,
    MetricSettings,
    ProofSettings,
    ScheduleSettings,
    SealSettings,
    Section,
    SessionSettings,
    StoreSettings,
    Task,
    TrainSettings,
    UniverseSettings,
    alike,
)

__all__ = [
    "DEFAULT_TASKS",
    "IDENTIFIER",
    "SHIPPED_CHOSEN_ASOF",
    "ChampionSettings",
    "CheckSettings",
    "FeatureSettings",
    "FoldSettings",
    "GridSettings",
    "Home",
    "IngestSettings",
    "JumpSettings",
    "LabelSettings",
    "MetricSettings",
    "ScheduleSettings",
    "SealSettings",
    "Section",
    "SessionSettings",
    "Settings",
    "StoreSettings",
    "Task",
    "TrainSettings",
    "UniverseSettings",
    "alike",
    "digest",
    "load_settings",
]


@dataclass(frozen=True)
class Home:
    """The folder that holds quant.toml, data/ and models/; it may be moved as a whole."""

    root: Path

    @classmethod
    def from_environment(cls) -> "Home":
        """The folder named by QUANT_HOME, else the current one."""
        return cls(Path(os.environ.get("QUANT_HOME") or ".").resolve())

    @property
    def settings_file(self) -> Path:
        return self.root / "quant.toml"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def raw(self) -> Path:
        return self.data / "raw"

    @property
    def database(self) -> Path:
        return self.data / "quant.duckdb"

    @property
    def inbox(self) -> Path:
        return self.data / "inbox"

    @property
    def published(self) -> Path:
        return self.data / "published"

    @property
    def dagster(self) -> Path:
        return self.data / "dagster"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def registry(self) -> Path:
        return self.models / "registry.sqlite"


# Newest outcome that led the choice of the shipped settings: docs/defaults.md.
SHIPPED_CHOSEN_ASOF = date(2011, 12, 31)

DEFAULT_TASKS = (
    Task(task_id="up_5d", kind="classification", horizon=5),
    Task(task_id="ret_5d", kind="regression", horizon=5, normalize="rank"),
)


class Settings(BaseSettings):
    """The whole experiment: quant.toml, overruled by variables like QUANT_TRAIN__SEED=7."""

    model_config = SettingsConfigDict(
        env_prefix="QUANT_", env_nested_delimiter="__", frozen=True, extra="forbid"
    )

    grid: GridSettings = GridSettings()
    ingest: IngestSettings = IngestSettings()
    sessions: SessionSettings = SessionSettings()
    seal: SealSettings = SealSettings()
    jumps: JumpSettings = JumpSettings()
    universe: UniverseSettings = UniverseSettings()
    label: LabelSettings = LabelSettings()
    features: FeatureSettings = FeatureSettings()
    tasks: tuple[Task, ...] = DEFAULT_TASKS
    folds: FoldSettings = FoldSettings()
    train: TrainSettings = TrainSettings()
    metrics: MetricSettings = MetricSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    champion: ChampionSettings = ChampionSettings()
    checks: CheckSettings = CheckSettings()
    alerts: AlertSettings = AlertSettings()
    housekeeping: HousekeepingSettings = HousekeepingSettings()
    proofs: ProofSettings = ProofSettings()
    store: StoreSettings = StoreSettings()

    @field_validator("tasks")
    @classmethod
    def _ids_are_unique(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        ids = [task.task_id for task in tasks]
        if not ids or len(ids) != len(set(ids)):
            raise ValueError(f"needs at least one task and each task_id once, has {ids}")
        return tasks

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    def task(self, task_id: str) -> Task:
        """The task of that id; an unknown one is an error that names the known ones."""
        for task in self.tasks:
            if task.task_id == task_id:
                return task
        raise SettingsError(unknown_name("task", task_id, [t.task_id for t in self.tasks]))


def load_settings(home: Home) -> Settings:
    """Read quant.toml of a home (shipped defaults where it has none) and QUANT_* variables."""

    class HomeSettings(Settings):
        model_config = SettingsConfigDict(toml_file=home.settings_file)

    _refuse_unknown_variables()
    try:
        found = HomeSettings()
    except ValidationError as error:
        raise SettingsError(_explain(error, home)) from None  # it holds every value
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{home.settings_file.name} is not valid TOML: {error}.") from error
    except UnreadableVariable as error:
        raise SettingsError(f"A QUANT_* variable cannot be used: {error}.") from None
    _refuse_secrets(home)
    return found


def _refuse_unknown_variables() -> None:
    """Refuse QUANT_TRIAN__SEED, which pydantic-settings would ignore without a word."""
    for name in os.environ:
        key, is_nested, _ = name.lower().removeprefix("quant_").partition("__")
        if name.lower().startswith("quant_") and is_nested and key not in Settings.model_fields:
            unknown = unknown_name("section of settings", key, Settings.model_fields)
            raise SettingsError(f"The variable {name} sets nothing. {unknown}")


# Keys whose value may be a secret: never shown, and of the environment where it is one.
SECRET_KEYS = {
    "alerts.webhook": re.compile("."),
    "store.postgres": re.compile("://[^/@]*:[^/@]*@|[?&]password="),
}


def _refuse_secrets(home: Home) -> None:
    """Refuse a secret in quant.toml, which is shared, copied and committed."""
    if not home.settings_file.exists():
        return
    given = tomllib.loads(home.settings_file.read_text(encoding="utf-8"))
    for key, is_secret in SECRET_KEYS.items():
        section, _, name = key.partition(".")
        if is_secret.search(str(given.get(section, {}).get(name, ""))):
            variable = f"QUANT_{section}__{name}".upper()
            raise SettingsError(
                f"{key} in {home.settings_file.name} is a secret, and that file is none. Take it "
                f"out and set the variable {variable}; whoever has seen the file knows it."
            )


def _explain(error: ValidationError, home: Home) -> str:
    lines = [f"{home.settings_file.name} (or a QUANT_* variable) has settings that cannot be used:"]
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"])
        what = "unknown key" if detail["type"] == "extra_forbidden" else detail["msg"][:200]
        given = "a value not shown" if _is_secret(key) else repr(detail["input"])[:200]
        lines.append(f"  {key}: {what} (got {given})")
    return "\n".join([*lines, "Each key is explained in the quant.toml that `quant init` writes."])


def _is_secret(key: str) -> bool:
    return any(secret in (key, f"{key}.{secret.partition('.')[2]}") for secret in SECRET_KEYS)


def digest(*parts: Any) -> str:
    """A short id of settings that decide a result: sections, strings or numbers, in order."""
    text = "\n".join(
        part.model_dump_json() if isinstance(part, BaseModel) else repr(part) for part in parts
    )
    return sha256(text.encode()).hexdigest()[:16]
