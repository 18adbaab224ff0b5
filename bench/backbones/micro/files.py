"""Location of the drawn worlds' weights and recipes in the package."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
RECIPES = Path(__file__).parent / "recipes"
"""Settings of methods: those of `micro`, and in a subfolder those that the study chose for its worlds."""


def weight_files(folder: Path) -> list[Path]:
    """The files that define the model; the record of its pretraining is left out, so that it does not change hashes."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json")]
    return [path for path in paths if path.name != "pretraining.json"]
