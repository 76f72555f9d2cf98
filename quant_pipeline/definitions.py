"""The Dagster code location of the home that QUANT_HOME names; workspace.yaml points here."""

from quant_pipeline.chain.workspace import Workspace
from quant_pipeline.defs.location import make_definitions
from quant_pipeline.settings import Home

defs = make_definitions(Workspace.open(Home.from_environment()))
