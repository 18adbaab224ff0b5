"""Loading one model of a diffusers pipeline, whole or not at all."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.backbones.pipeline_files import config_file, require_whole, variant_of, weight_files
from bench.errors import BenchError, DamagedError, MissingError, one_line
from bench.weights.checkpoints import read_config, refuse_quantised, refuse_stand_ins, require_model
from bench.weights.frozen import whole

CURE = "give a local folder in diffusers' format, or make the hub reachable, accept the model's licence and log in"


def not_loaded(what: str, home: str, error: Exception) -> BenchError:
    """The error of a pipeline that a library cannot load; of a local folder no licence is to be accepted."""
    said = f"cannot load {what}: {one_line(error)}"
    if Path(home).is_dir():
        return (MissingError if isinstance(error, OSError) else DamagedError)(said)
    return MissingError(f"{said}; {CURE}")


def part_of(model_class, home: str, subfolder: str, **how):
    """A model of a pipeline, from its plain files or, where there are no others, from a variant's."""
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
        for path in weight_files(fetched.parent):  # those of the hub are here now
            require_model(path, what)
        return whole(loaded, folder)
    except ValueError as error:
        if other := re.search(r"(\S+) expected shape ", one_line(error)):  # diffusers', and then its advice
            said = f"holds in another shape than its config.json says the tensor {other[1]}"
            raise DamagedError(f"{folder} {said}") from error
        raise


@contextmanager
def unremarked() -> Iterator[None]:
    """The libraries' own remarks on tensors are left out: they advise to ignore what `whole` refuses."""
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
