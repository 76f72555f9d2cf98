"""The page's server with everything imported before it listens: the first visit is no slower."""

import sys
from pathlib import Path

import lightgbm  # noqa: F401  (what a model is opened with)
import sklearn.metrics  # noqa: F401
from streamlit.web.cli import main

from quant_pipeline.faces.web import data, models, outcomes, overview, predictions  # noqa: F401

if __name__ == "__main__":
    script = str(Path(__file__).with_name("app.py"))
    sys.argv = ["streamlit", "run", script, *sys.argv[1:]]
    main()
