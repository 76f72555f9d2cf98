"""Entry of the page, run by `streamlit run`; `quant ui` and `quant web` start it."""

from pathlib import Path

import streamlit as st

from quant_pipeline.errors import QuantError
from quant_pipeline.faces.web import data, models, outcomes, overview, predictions, shared

ICON = str(Path(__file__).with_name("icon.png"))


def main() -> None:
    """Lay out the pages."""
    st.set_page_config(page_title="quant_pipeline", page_icon=ICON, layout="wide")
    pages = [
        st.Page(overview.page, title="Overview", icon=":material/home:", url_path="overview",
                default=True),
        st.Page(predictions.page, title="Predictions", icon=":material/format_list_numbered:",
                url_path="predictions"),
        st.Page(models.page, title="Models", icon=":material/account_tree:", url_path="models"),
        st.Page(outcomes.page, title="Outcomes", icon=":material/monitoring:",
                url_path="outcomes"),
        st.Page(data.page, title="Data", icon=":material/table:", url_path="data"),
    ]  # fmt: skip
    chosen = st.navigation(pages)
    try:
        home = shared.workspace().home
    except QuantError as error:
        st.error(str(error), icon=":material/error:")
        return
    chosen.run()
    st.sidebar.caption(f"{home.root.name} · research software, not investment advice")


main()
