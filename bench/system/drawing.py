"""matplotlib isolated from the settings of users and notebooks, so that figures do not depend on them."""

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
"""Settings that do not affect figures, or that must not change once matplotlib is in use."""


@contextmanager
def own_settings(changes: dict[str, Any] | None = None) -> Iterator[None]:
    """Draw with matplotlib's defaults and these changes in the block, to files only."""
    matplotlib = imported()
    with warnings.catch_warnings():
        # Reading a deprecated setting warns.
        warnings.simplefilter("ignore")
        settings = {key: value for key, value in matplotlib.rcParamsDefault.items() if key not in NOT_OURS}
    with matplotlib.rc_context():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            matplotlib.rcParams.update(settings | (changes or {}))
        yield


def imported():
    """Return matplotlib with its Agg backend, imported so that a user's files and variables cannot break the import.

    While it is imported, matplotlib reads a backend's name (MPLBACKEND), settings (matplotlibrc, first in the current
    folder) and styles.
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
