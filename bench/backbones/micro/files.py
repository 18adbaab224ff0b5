"""Location of the micro world's weights in the package."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def weight_files(folder: Path) -> list[Path]:
    """The files that define the model; the record of its pretraining is left out, so that it does not change hashes."""
    return [p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json") and p.name != "pretraining.json"]
