"""The scripts in results/reference/study, which are no package, as modules, and how its texts write a score."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

STUDY = Path(__file__).parents[1] / "results" / "reference" / "study"


def short(value: float, signed: bool = False, digits: int = 3) -> str:
    """A score as texts write it: .704, or +.012 for a difference."""
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("0.", ".")


def scripts(folder: Path, *names: str) -> list[ModuleType]:
    """Scripts of one folder, those first that others import by their file's name."""
    made = []
    for name in names:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made.append(module)
    for name in names:
        del sys.modules[name]
    return made
