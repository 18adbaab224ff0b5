"""Fixtures of the tests of reports."""

from collections.abc import Iterator

import pytest

from report.figures import SVG, WIDTHS, Figure


@pytest.fixture(scope="session", autouse=True)
def quick_fonts() -> Iterator[None]:
    """PDF files have fonts of a kind that is quicker to embed: TrueType's take half of the time of a small report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("report.style.FONT_TYPE", 3)
        yield


@pytest.fixture(scope="module")
def quick_intervals() -> Iterator[None]:
    """Fewer resamples, for modules that are not about numbers: of many small reports they take most of the rest."""
    from bench.analysis import stats

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "RESAMPLES", 200)
        stats._chances.cache_clear()
        yield
    stats._chances.cache_clear()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have their files, with nothing in them, for tests of which files a report writes."""

    def files(self: Figure) -> dict[str, bytes]:
        empty = f'<svg xmlns="{SVG}"></svg>'.encode()
        return {f"{self.name}-{size}.{kind}": empty for size in WIDTHS for kind in ("pdf", "svg", "png")}

    monkeypatch.setattr(Figure, "files", property(files))
