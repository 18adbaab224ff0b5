"""Loading one model of a diffusers pipeline: completely, or with an error."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.backbones.pipeline_files import config_file, require_whole, variant_of, weight_files
from bench.errors import BenchError, DamagedError, MissingError, one_line
from bench.weights.checkpoints import read_config, refuse_quantised, refuse_stand_ins, require_model
from bench.weights.frozen import whole

CURE = "give a local folder in diffusers' format, or connect to the hub, accept the model's licence and log in"


def not_loaded(what: str, home: str, error: Exception) -> BenchError:
    """The error for a pipeline that a library failed to load; advice on the hub is added for hub ids only."""
    said = f"cannot load {what}: {one_line(error)}"
    if not Path(home).is_dir():
        return MissingError(f"{said}; {CURE}")
    return MissingError(said) if isinstance(error, OSError) else DamagedError(said)


def part_of(model_class, home: str, subfolder: str, **how):
    """Load one model of a pipeline, from its plain files or, if there are none, from a variant.

    `how` is passed to from_pretrained. Raises MissingError for missing files, DamagedError for files that are corrupt
    or do not match the model, and UsageError for quantised weights.
    """
    folder = Path(home) / subfolder
    if Path(home).is_dir():
        require_whole(folder)
        refuse_stand_ins(folder, subfolder)
    what = f"weights file of the {subfolder}"
    for path in weight_files(folder):
        require_model(path, what)
    fetched = config_file(home, subfolder)
    refuse_quantised(read_config(fetched), fetched)
    how |= {"variant": variant_of(folder), "use_safetensors": True, "output_loading_info": True}
    try:
        with unremarked():
            loaded = model_class.from_pretrained(home, subfolder=subfolder, **how)
        # Files of a hub id have been downloaded only now.
        for path in weight_files(fetched.parent):
            require_model(path, what)
        return whole(loaded, folder)
    except ValueError as error:
        # diffusers advises here to ignore mismatched shapes, which would leave the tensor at random values.
        if other := re.search(r"(\S+) expected shape ", one_line(error)):
            raise DamagedError(
                f"{folder}: the shape of the tensor {other[1]} differs from the one in its config.json"
            ) from error
        raise


@contextmanager
def unremarked() -> Iterator[None]:
    """Silence the libraries' warnings about tensors, which call harmless what `whole` raises an error for."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = [(library, library.get_verbosity()) for library in (of_diffusers, of_transformers)]
    for library, _ in before:
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, level in before:
            library.set_verbosity(level)
