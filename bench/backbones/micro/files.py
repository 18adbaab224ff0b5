"""Location of the micro world's weights in the package."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def weight_files(folder: Path) -> list[Path]:
    """The files that define the model; the record of its pretraining is left out, so that it does not change hashes."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json")]
    return [path for path in paths if path.name != "pretraining.json"]
