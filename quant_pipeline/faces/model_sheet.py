"""What `quant models show` prints of one model: what a person asks first stands first."""

import textwrap
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import typer

from quant_pipeline.faces.output import cell, count, print_table
from quant_pipeline.faces.report import SHOWN

WIDTH = 100
FOLDS = {
    "fold": "fold", "train_start": "trains from", "stop_start": "stops early on",
    "test_start": "tests from", "test_end": "to", "n_train": "rows", "n_purged": "purged",
    "rounds": "rounds", "rank_ic": "RankIC", "rank_ic_se": "± s.e.",
}  # fmt: skip


def show_sheet(model: Mapping[str, Any]) -> None:
    """One model, from the plain data of its row."""
    typer.echo(
        f"{model['task_id']} as of {model['asof']} (partition {model['partition_key']}), "
        f"{model['status']}\n"
    )
    for name, text in _facts(model):
        _print_pair(name, text)
    typer.echo("\nFolds, and RankIC in their test windows:")
    print_table(model["fold_metrics"], FOLDS)
    metrics = model["metrics"]
    typer.echo(
        f"\nAll test windows together, {cell(metrics['n_rows'], 'n_rows')} rows on "
        f"{cell(metrics['n_sessions'], 'n_sessions')} sessions:"
    )
    print_table(list(_metrics(metrics)))
    typer.echo("\nSettings:")
    for name, section in model["settings"].items():
        for line in _lines(name, section):
            _print_pair(*line)
    _print_pair("LightGBM", _in_words(model["parameters"]))
    short = model["model_id"][:12]
    typer.echo(
        f"\nWhich features matter: `quant models explain {short}`.\n"
        f"Everything, the scored sessions too: `quant models show {short} --json`."
    )


def _facts(model: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    made = datetime.fromisoformat(model["created_at"])
    yield "model", model["model_id"]
    yield (
        "learned from",
        (
            f"{count(model['n_rows'], 'row')} of {count(model['n_symbols'], 'symbol')} on "
            f"{count(model['n_sessions'], 'session')}, {model['first_ts']} to {model['last_ts']}"
        ),
    )
    yield "rounds", f"{model['rounds']:,}"
    yield (
        "features",
        (
            f"{count(len(model['features']), 'feature')} as {model['feature_type']}, set "
            f"{model['feature_set_id']}"
        ),
    )
    yield "settings", f"recipe {model['recipe']}, chosen as of {model['chosen_asof']}"
    yield "data", f"prices of batch {model['price_batch_id']}, print {model['data_fingerprint']}"
    yield "file", f"models/{model['model_id'][:12]}….joblib, {model['file_bytes'] / 1024:,.1f} KiB"
    yield (
        "trained",
        (
            f"{made:%Y-%m-%d %H:%M} UTC in {model['seconds']:.1f} s, by {model['code_version']}, "
            f"run {model['run_id']}"
        ),
    )
    yield "on", ", ".join(f"{k} {v}" for k, v in model["environment"].items())


def _metrics(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Metrics beside what chance reaches; those without an error or a base show a dash."""
    for title, name, base in SHOWN:
        if metrics.get(name) is not None:
            chance = metrics.get(base) if isinstance(base, str) else base
            yield {"metric": title, "value": metrics[name], "± s.e.": metrics.get(f"{name}_se"),
                   "chance": chance}  # fmt: skip


def _lines(name: str, section: Any) -> Iterator[tuple[str, str]]:
    """A section of the settings; of a list of sections each its own line."""
    if isinstance(section, Mapping):
        yield name, _in_words(section)
    elif isinstance(section, list) and section and isinstance(section[0], Mapping):
        for entry in section:
            yield name, _in_words(entry)
    else:
        yield name, _word(section)


def _in_words(section: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_word(value)}" for name, value in section.items()) or "none"


def _word(value: Any) -> str:
    """A setting as it is, not rounded."""
    if isinstance(value, Mapping):
        return f"({_in_words(value)})"
    if isinstance(value, list):
        return " ".join(_word(one) for one in value) or "none"
    if isinstance(value, bool) or value is None:
        return cell(value)
    return str(value) if value != "" else "none"


def _print_pair(name: str, text: str) -> None:
    lines = textwrap.wrap(text, WIDTH - 18, break_long_words=False, break_on_hyphens=False) or [""]
    for i, line in enumerate(lines):
        typer.echo(f"  {'' if i else name:<15} {line}")
