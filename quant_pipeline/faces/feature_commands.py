"""`quant features`: what each feature is, and what it was for a symbol."""

from typing import Annotated

import typer

from quant_pipeline.faces.options import Csv, Json, To, open_workspace
from quant_pipeline.faces.output import emit

features_app = typer.Typer(
    help="Features: formulas and values.", no_args_is_help=True, rich_markup_mode=None
)


@features_app.command("list")
def list_features(
    all_: Annotated[
        bool, typer.Option("--all", help="All that there are, not only those of quant.toml.")
    ] = False,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """List features: name, sessions that its window looks back, inputs, formula.

    In formulas o, h, l, c, v are the adjusted bar, ago(c,5) is the close 5 sessions ago, and a
    window of d sessions ends with the session itself. `quant features list --all` needs no home.

    Example: quant features list
    """
    from quant_pipeline.faces.features import find_features, show_features

    rows = find_features(None if all_ else open_workspace())
    emit(rows, as_json, lambda: show_features(rows), as_csv)


@features_app.command("show")
def show_feature(
    name: Annotated[str, typer.Argument(help="A feature of quant.toml or a built-in one.")],
    symbol: Annotated[str | None, typer.Option(help="Its values for this symbol.")] = None,
    to: To = None,
    last: Annotated[int, typer.Option(min=1, help="So many newest bars of the symbol.")] = 10,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Show a feature: its formula, and its values beside the bars that they are made from.

    Values are computed from the stored prices; a dash is a missing one. --csv: the values alone.

    Example: quant features show KMID2 --symbol ALI --to 2021-11-29 --last 5
    """
    from quant_pipeline.faces.features import find_feature, print_feature

    found = find_feature(open_workspace(), name, symbol, to, last)
    rows = found["values"] or []
    emit(rows if as_csv else found, as_json, lambda: print_feature(found), as_csv)
