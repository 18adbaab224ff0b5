"""matplotlib by itself: nothing of a user's or a notebook's set-up of it reaches our files."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

NOT_OURS = ("backend", "backend_fallback", "interactive", "toolbar", "timezone", "date.epoch", "docstring.hardcopy")
"""Settings that no picture shows, or that must not change once matplotlib is in use."""


@contextmanager
def own_settings(changes: dict[str, Any] | None = None) -> Iterator[None]:
    """matplotlib with its own defaults and these changes, drawing to files alone."""
    matplotlib = imported()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that are on their way out
        settings = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in NOT_OURS}
    with matplotlib.rc_context():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            matplotlib.rcParams.update(settings | (changes or {}))
        yield


def imported():
    """The package with its Agg backend, imported so that no file or variable of a user's can break that.

    It reads a backend's name (MPLBACKEND), settings (matplotlibrc, in the current folder first) and styles while it is
    imported.
    """
    if "matplotlib.pyplot" not in sys.modules:
        package = Path(find_spec("matplotlib").origin).parent
        own = {"MPLBACKEND": "Agg", "MATPLOTLIBRC": str(package / "mpl-data" / "matplotlibrc")}
        with ExitStack() as stack:
            stack.enter_context(patch.dict(os.environ, own))
            stack.enter_context(chdir(package))
            import matplotlib

            stack.enter_context(patch.object(matplotlib, "get_configdir", lambda: str(package / "no-styles")))
            import matplotlib.pyplot
    else:
        import matplotlib

        matplotlib.use("Agg")
    return matplotlib
