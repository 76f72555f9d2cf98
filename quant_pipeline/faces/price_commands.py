"""`quant prices`: versions of bars, and what was restated."""

from typing import Annotated

import typer

from quant_pipeline.faces.options import Csv, From, Json, OneSession, To, open_workspace
from quant_pipeline.faces.output import emit

prices_app = typer.Typer(
    help="Stored prices and their versions.", no_args_is_help=True, rich_markup_mode=None
)


@prices_app.command("history")
def price_history(
    symbol: Annotated[str, typer.Option(help="The symbol.")],
    ts: OneSession,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """Show every version of one bar: what was known about it from which batch on.

    Example: quant prices history --symbol ALI --ts 2021-11-29
    """
    from quant_pipeline.faces.prices import find_history, show_history

    rows = find_history(open_workspace(), symbol, ts)
    emit(rows, as_json, lambda: show_history(rows), as_csv)


@prices_app.command("restated")
def price_restatements(
    from_: From = None,
    to: To = None,
    symbol: Annotated[str | None, typer.Option(help="Only this symbol.")] = None,
    reach: Annotated[
        bool, typer.Option("--reach", help="Tell which models and scores knew less, and why.")
    ] = False,
    as_json: Json = False,
    as_csv: Csv = False,
) -> None:
    """List bars that changed after they were stored, or came after their window was sealed.

    Example: quant prices restated --from 2021-01-01 --reach
    """
    from quant_pipeline.faces.prices import find_restated, show_restated

    found = find_restated(open_workspace(), from_, to, symbol, with_reach=reach)
    emit(found["restated"] if as_csv else found, as_json, lambda: show_restated(found), as_csv)
