"""The 158 features of Qlib's Alpha158, by the same names and in the same order.

`c` is the close and so on; ago(c,d) is d sessions ago; a window of d sessions ends with the
session itself. Statistics skip sessions without a bar. Where a denominator is 0, a ratio is NaN;
where 1e-12 is added to it, the ratio is large but finite (0 if the numerator is 0, too: no
volume, no move). Of flat prices STD is 0, RSQR and CORR are NaN.
"""

from collections.abc import Sequence

from quant_pipeline.market.feature_kinds import Feature, Kernel, KernelColumn

WINDOWS = (5, 10, 20, 30, 60)
# Of a kind of feature: the letters of its inputs, and its formula.
_Kinds = dict[str, tuple[str, str]]

_CANDLES = Kernel("candles", ("open", "high", "low", "close", "vwap"))
_CANDLE_FORMULAS: _Kinds = {
    "KMID": ("oc", "(c-o)/o"),
    "KLEN": ("ohl", "(h-l)/o"),
    "KMID2": ("ohlc", "(c-o)/(h-l+1e-12)"),
    "KUP": ("ohc", "(h-max(o,c))/o"),
    "KUP2": ("ohlc", "(h-max(o,c))/(h-l+1e-12)"),
    "KLOW": ("olc", "(min(o,c)-l)/o"),
    "KLOW2": ("ohlc", "(min(o,c)-l)/(h-l+1e-12)"),
    "KSFT": ("ohlc", "(2c-h-l)/o"),
    "KSFT2": ("hlc", "(2c-h-l)/(h-l+1e-12)"),
    "OPEN0": ("oc", "o/c"),
    "HIGH0": ("hc", "h/c"),
    "LOW0": ("lc", "l/c"),
    "VWAP0": ("cw", "vwap/c"),
}

# Of each kernel with windows: its kinds of features in the order of its columns, with formulas.
_WINDOWED: dict[Kernel, _Kinds] = {
    Kernel("trend", ("close",)): {
        "ROC": ("c", "ago(c,{d})/c"),
        "MA": ("c", "mean(c,{d})/c"),
        "STD": ("c", "std(c,{d})/c"),
        "BETA": ("c", "slope(c,{d})/c"),
        "RSQR": ("c", "r2(c,{d})"),
        "RESI": ("c", "residual(c,{d})/c"),
    },
    Kernel("extremes", ("high", "low", "close")): {
        "MAX": ("hc", "max(h,{d})/c"),
        "MIN": ("lc", "min(l,{d})/c"),
        "RSV": ("hlc", "(c-min(l,{d}))/(max(h,{d})-min(l,{d})+1e-12)"),
        "IMAX": ("h", "position(max(h,{d}))/{d}"),
        "IMIN": ("l", "position(min(l,{d}))/{d}"),
        "IMXD": ("hl", "(position(max(h,{d}))-position(min(l,{d})))/{d}"),
    },
    Kernel("order", ("close",)): {
        "QTLU": ("c", "quantile(c,{d},0.8)/c"),
        "QTLD": ("c", "quantile(c,{d},0.2)/c"),
        "RANK": ("c", "rank(c,{d})/count(c,{d})"),
    },
    Kernel("co_movement", ("close", "log_volume")): {"CORR": ("cv", "corr(c,ln(v+1),{d})")},
    Kernel("co_movement", ("close_ratio", "log_volume_ratio")): {
        "CORD": ("cv", "corr(c/ago(c,1),ln(v/ago(v,1)+1),{d})")
    },
    Kernel("counts", ("close_move",)): {
        "CNTP": ("c", "mean(c>ago(c,1),{d})"),
        "CNTN": ("c", "mean(c<ago(c,1),{d})"),
        "CNTD": ("c", "mean(c>ago(c,1),{d})-mean(c<ago(c,1),{d})"),
    },
    Kernel("shares", ("close_move",)): {
        "SUMP": ("c", "sum(max(c-ago(c,1),0),{d})/(sum(|c-ago(c,1)|,{d})+1e-12)"),
        "SUMN": ("c", "sum(max(ago(c,1)-c,0),{d})/(sum(|c-ago(c,1)|,{d})+1e-12)"),
        "SUMD": ("c", "sum(c-ago(c,1),{d})/(sum(|c-ago(c,1)|,{d})+1e-12)"),
    },
    Kernel("levels", ("volume",)): {
        "VMA": ("v", "mean(v,{d})/(v+1e-12)"),
        "VSTD": ("v", "std(v,{d})/(v+1e-12)"),
    },
    Kernel("unevenness", ("weighted_move",)): {
        "WVMA": ("cv", "std(|c/ago(c,1)-1|*v,{d})/(mean(|c/ago(c,1)-1|*v,{d})+1e-12)")
    },
    Kernel("shares", ("volume_move",)): {
        "VSUMP": ("v", "sum(max(v-ago(v,1),0),{d})/(sum(|v-ago(v,1)|,{d})+1e-12)"),
        "VSUMN": ("v", "sum(max(ago(v,1)-v,0),{d})/(sum(|v-ago(v,1)|,{d})+1e-12)"),
        "VSUMD": ("v", "sum(v-ago(v,1),{d})/(sum(|v-ago(v,1)|,{d})+1e-12)"),
    },
}
_ORDER = (
    "ROC", "MA", "STD", "BETA", "RSQR", "RESI", "MAX", "MIN", "QTLU", "QTLD", "RANK", "RSV",
    "IMAX", "IMIN", "IMXD", "CORR", "CORD", "CNTP", "CNTN", "CNTD", "SUMP", "SUMN", "SUMD",
    "VMA", "VSTD", "WVMA", "VSUMP", "VSUMN", "VSUMD",
)  # fmt: skip
_LETTERS = {"o": "open", "h": "high", "l": "low", "c": "close", "v": "volume", "w": "vwap"}


def _inputs(letters: str) -> tuple[str, ...]:
    return tuple(_LETTERS[letter] for letter in letters)


def _windowed(kernel: Kernel, kinds: _Kinds, windows: Sequence[int]) -> list[Feature]:
    found = []
    for i, (kind, (letters, formula)) in enumerate(kinds.items()):
        # What it compares with the session before reaches one session further back.
        reach = 0 if "ago(" in formula else -1
        for k, d in enumerate(windows):
            column = KernelColumn(kernel, i * len(windows) + k)
            text = formula.format(d=d)
            found.append(Feature(f"{kind}{d}", _inputs(letters), d + reach, column, text))
    return found


def _table() -> dict[str, Feature]:
    candles = [
        Feature(name, _inputs(letters), 0, KernelColumn(_CANDLES, i), formula)
        for i, (name, (letters, formula)) in enumerate(_CANDLE_FORMULAS.items())
    ]
    windowed = {f.name: f for k, kinds in _WINDOWED.items() for f in _windowed(k, kinds, WINDOWS)}
    rest = [windowed[f"{kind}{d}"] for kind in _ORDER for d in WINDOWS]
    return {f.name: f for f in (*candles, *rest)}


ALPHA158 = _table()
KERNELS = {_CANDLES: len(_CANDLE_FORMULAS)} | {
    kernel: len(kinds) * len(WINDOWS) for kernel, kinds in _WINDOWED.items()
}
