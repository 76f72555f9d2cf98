"""The asset graph as a text that a person can read: graph.txt; and the catalogue's columns."""

import sys
from pathlib import Path
from subprocess import run

import dagster as dg
import pytest
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from quant_pipeline.defs.columns import COLUMNS, SCHEMA
from quant_pipeline.defs.location import make_definitions
from quant_pipeline_tests.homes import EVERY

SNAPSHOT = Path(__file__).with_name("graph.txt")
NOT_IN_TABLE = {"lgbm_model"}  # a row of the registry


def written(graph: AssetGraph) -> str:
    """One block an asset, upstream first."""
    blocks = []
    for key in graph.toposorted_asset_keys:
        node = graph.get(key)
        policy = node.backfill_policy
        size = policy.max_partitions_per_run
        lines = [
            key.to_user_string(),
            f"  group {node.group_name}; kinds {', '.join(sorted(node.kinds))}; "
            f"pool {', '.join(sorted(node.pools))}; owners {', '.join(node.owners)}",
            f"  backfill {'in one run' if size is None else f'in runs of {size}'}",
        ]
        for parent in sorted(node.parent_keys):
            mapping = node.partition_mappings.get(parent, dg.TimeWindowPartitionMapping())
            assert isinstance(mapping, dg.TimeWindowPartitionMapping)
            offsets = f"{mapping.start_offset} to {mapping.end_offset}"
            lines.append(f"  reads {parent.to_user_string()}, partition {offsets}")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


@pytest.fixture
def graph(workspace) -> AssetGraph:
    return make_definitions(workspace).resolve_asset_graph()


def test_the_asset_graph_is_the_one_of_graph_txt(graph) -> None:
    """After a wanted change: copy what the failure shows into graph.txt."""
    assert written(graph) == SNAPSHOT.read_text()


def test_groups_follow_one_another_from_left_to_right(graph) -> None:
    order = ["market", "learning", "predictions"]
    for node in graph.asset_nodes:
        for parent in node.parent_keys:
            mine, theirs = order.index(node.group_name), graph.get(parent).group_name
            assert order.index(theirs) <= mine


def test_every_asset_has_columns_with_types_and_descriptions(graph) -> None:
    for node in graph.asset_nodes:
        columns = node.metadata[SCHEMA].columns
        assert len(columns) >= 8
        for column in columns:
            assert column.type.isupper(), column
            assert column.description, column


def test_described_columns_are_those_that_are_stored(finished) -> None:
    ws = finished.workspace
    graph = make_definitions(ws).resolve_asset_graph()
    for asset in set(EVERY) - NOT_IN_TABLE:
        columns = graph.get(dg.AssetKey(asset)).metadata[SCHEMA].columns
        said = {c.name: c.type for c in columns}
        stored = {
            name: {"TIMESTAMP WITH TIME ZONE": "TIMESTAMPTZ"}.get(type_, type_)
            for name, type_, *_ in finished.rows(f"DESCRIBE {asset}")
        }
        assert said == stored, asset


def test_described_columns_of_models_are_of_the_registry(finished) -> None:
    model = finished.workspace.meta.models()[0]
    assert {name for name, *_ in COLUMNS["lgbm_model"]} <= set(type(model).model_fields)


def test_features_are_described_by_their_formulas(graph, workspace) -> None:
    columns = graph.get(dg.AssetKey("features_daily")).metadata[SCHEMA].columns
    found = {c.name: c.description for c in columns}
    for feature in workspace.features:
        assert found[feature.name] == feature.formula


def test_features_of_ones_own_are_named_without_running_their_module(home) -> None:
    made = home(changes={"exclude = []": 'exclude = []\nmodules = ["mine"]'})
    (made.root / "mine.py").write_text("raise RuntimeError('not to be run')\n")
    graph = make_definitions(made.workspace).resolve_asset_graph()
    columns = graph.get(dg.AssetKey("features_daily")).metadata[SCHEMA].columns
    assert any("mine" in (c.description or "") for c in columns)


def test_heavy_libraries_are_not_imported_by_the_definitions(home) -> None:
    made = home()
    heavy = {"altair", "vl_convert", "numba", "streamlit", "lightgbm", "sklearn", "scipy", "optuna"}
    code = f"import sys, quant_pipeline.definitions\nsys.exit(' '.join({heavy} & set(sys.modules)))"
    done = run([sys.executable, "-c", code], cwd=made.root, capture_output=True, text=True)
    assert done.stderr.strip() == ""
