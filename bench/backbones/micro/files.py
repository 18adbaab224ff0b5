"""Where the shipped weights lie."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"


def weight_files(folder: Path) -> list[Path]:
    """The files that make the model what it is."""
    return [p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json") and p.name != "pretraining.json"]
