"""With what something was made: code, interpreter and libraries; and what of it is another now."""

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path

import quant_pipeline


@cache
def installed(package: str) -> str:
    """The version of a package; to find it takes milliseconds."""
    return version(package)


def environment() -> dict[str, str]:
    """What the bytes of a model depend on besides data and settings."""
    names = ("lightgbm", "numpy", "scikit-learn", "joblib")
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        **{name: installed(name) for name in names},
    }


@cache
def code_version() -> str:
    """The package's version and a hash of its sources."""
    found = hashlib.sha256()
    root = Path(quant_pipeline.__file__).parent
    for path in sorted(root.rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return f"{version('quant-pipeline')}+{found.hexdigest()[:12]}"


@cache
def made_with() -> str:
    """Code and environment in one line, as it is recorded with each written slice."""
    return ", ".join(f"{part} {what}" for part, what in _parts(code_version(), environment()))


def changes_since(code: str, then: dict[str, str]) -> list[str]:
    """What of code and environment is another now, each as "numpy 2.4.5 then, 2.4.6 now"."""
    now = dict(_parts(code_version(), environment()))
    return [
        f"{part} {what} then, {now.get(part)} now"
        for part, what in _parts(code, then) if now.get(part) != what
    ]  # fmt: skip


def changes_since_made(text: str) -> list[str]:
    """The same of a line of `made_with`; a slice of an older version of this package has none."""
    if not text:
        return ["code that was not recorded then"]
    said = dict(part.split(" ", 1) for part in text.split(", "))
    return changes_since(said.pop("code", "?"), said)


def _parts(code: str, env: dict[str, str]) -> list[tuple[str, str]]:
    return [("code", code), *env.items()]
