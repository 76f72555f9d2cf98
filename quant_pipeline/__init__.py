"""Daily prices in, daily out-of-sample stock scores out; no score saw the future."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quant_pipeline.faces.notebook import NotebookHome

__all__ = ["open"]


def open(folder: "Path | str" = ".") -> "NotebookHome":
    """The home in a folder, for a notebook: its scores, outcomes, models and examples as frames."""
    from quant_pipeline.faces.notebook import open_home

    return open_home(folder)
