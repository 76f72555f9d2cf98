"""A user's own features: modules of the home, loaded by name and tried before they are used."""

import importlib.util
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from quant_pipeline.errors import FeatureError, QuantError
from quant_pipeline.market.feature_kinds import AnyFeature, CrossSection, Feature
from quant_pipeline.market.feature_trial import require_honest
from quant_pipeline.settings import Home


@dataclass(frozen=True)
class OwnFeatures:
    """Features of the modules that quant.toml names, and the sha256 of each module's file."""

    features: tuple[AnyFeature, ...] = ()
    sha256: tuple[tuple[str, str], ...] = ()


def load_own_features(home: Home, modules: Sequence[str]) -> OwnFeatures:
    """Run `<module>.py` of the home, one after the other, and take its list FEATURES.

    Raises FeatureError for a module that is missing or fails, for what is no feature, and for a
    feature that looks ahead or further back than its window.
    """
    found: list[AnyFeature] = []
    hashes = []
    for name in modules:
        path = home.root / f"{name}.py"
        if not path.is_file():
            raise FeatureError(
                f"features.modules names {name}, but {path} is no file. Make it, with a list "
                "FEATURES of features, or take the name out of quant.toml."
            )
        source = path.read_bytes()
        found += _run(name, str(path), source)
        hashes.append((name, sha256(source).hexdigest()))
    require_honest(found)
    return OwnFeatures(tuple(found), tuple(hashes))


def _run(name: str, path: str, source: bytes) -> list[AnyFeature]:
    spec = importlib.util.spec_from_loader(f"quant_home_{name}", loader=None, origin=path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses look names up
    try:
        # What is hashed is what runs: the file is read once, and no cached bytecode is used.
        exec(compile(source, path, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = f", line {lines[-1]}" if lines else ""
        kind = "" if isinstance(error, QuantError) else f" {type(error).__name__}:"
        raise FeatureError(f"{path}{line}:{kind} {str(error).rstrip('.')}.") from error
    features = getattr(module, "FEATURES", None)
    if not isinstance(features, list | tuple) or not features:
        raise FeatureError(f"{path} has no list FEATURES of features.")
    for feature in features:
        if not isinstance(feature, Feature | CrossSection):
            raise FeatureError(
                f"FEATURES of {path} holds {feature!r}, which is neither a Feature nor a "
                "CrossSection of quant_pipeline.market.features."
            )
    return list(features)
