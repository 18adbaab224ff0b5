"""The tables of `micro`'s stored comparison follow from its stored runs, and their README shows the same figures."""

import json
import re
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from bench.analysis.comparison import Standing, against, standings
from bench.analysis.records import design, prompts_known
from bench.analysis.stats import Difference, Estimate, holm
from bench.cli.compare import print_standings, target_text
from report.claims import score_claims
from report.evidence import collect
from report.lines import Line, pools
from report.sections import make
from report.table import plain
from tests.archives import unpack

ROOT = Path(__file__).parent.parent
STORED = ROOT / "results" / "reference" / "micro"


# stored tables, where their runs are unpacked, comparisons in the order of the README beside them
ABLATIONS = [
    (
        "ablations/tables.txt",
        "ablations",
        "e8f084d5b3 40e3734189 2f5629e5ab 42da2cb2cd 6475ccb070 8fd886b841 4eb9af4baa 982f5b8016 7a846f9a19",
    ),
    ("ablations/rl.txt", "compare", "b2ab6c4dbe 431da8c721 28240e306c 95c74f4462"),
    ("combine/table.txt", "combine", "c85c1e2a0f"),
    (
        "table/table.txt",
        "table",
        "7b4d281fe3 f9c7222520 efa8638e55 e6f522bed0 6fed081757 fe0910d768 c8634eb2a7 724942b845 9b24065cce 303065b9c0 "
        "9c88351848 360960f2eb cf092a41b3 6177eabdde f2499edeb6 0b161c147b bf153d0b13 af35667919",
    ),
]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "results"
    for name in ("compare", "ablations", "combine", "interference", "recipes", "table"):
        unpack(STORED / name / "runs.tar.xz", folder)
    return folder


@dataclass(frozen=True)
class Compared:
    """A comparison's record and its lines, in its order."""

    path: Path
    budget: int
    lines: list[Line]
    tasks: tuple[str, ...]

LATER = ("until-target", "tags", "below-base", "other-scores")
"""Tables that came after the page of the recipes, whose images are not stored."""


def read(path: Path) -> Compared:
    content = json.loads(path.read_text())
    pool = pools(collect([path]))[0]
    lines = {line.label: line for line in pool.lines}
    return Compared(path, content["budget"], [lines[line["label"]] for line in content["lines"]], pool.tasks)


@pytest.fixture(scope="module")
def compared(unpacked: Path) -> Compared:
    return read(unpacked / "compare" / "comparison-664564c704.json")


def standings_of(compared: Compared, reference: str) -> list[Standing]:
    cost = max(line.teacher_nfe for line in compared.lines) / len(compared.tasks)
    groups = {line.label: line.records for line in compared.lines}
    return standings(groups, compared.tasks, reference, dict.fromkeys(compared.tasks, cost))


@pytest.fixture(scope="module")
def table(compared: Compared) -> list[Standing]:
    return standings_of(compared, "opd_analytic")


def test_every_line_has_five_seeds_and_equal_compute(compared: Compared) -> None:
    assert len({line.label.partition(" ")[0] for line in compared.lines}) >= 8
    for line in compared.lines:
        assert sorted(r.summary["seed"] for r in line.records) == [0, 1, 2, 3, 4]
        if line.label != "merge":
            assert line.training_nfe == pytest.approx(compared.budget, rel=0.02)


def test_table_follows_from_the_runs(compared: Compared, table: list[Standing], capsys) -> None:
    path = Path("results/compare") / compared.path.name
    print_standings(table, "opd_analytic", compared.tasks, compared.budget, "test", path)
    assert capsys.readouterr().out == (STORED / "compare" / "table.txt").read_text()


@pytest.mark.parametrize(("name", "folder", "comparisons"), ABLATIONS)
def test_tables_of_ablations_follow_from_the_runs(unpacked: Path, capsys, name, folder, comparisons) -> None:
    for number in comparisons.split():
        found = read(unpacked / folder / f"comparison-{number}.json")
        reference, path = found.lines[0].label, Path("results") / folder / found.path.name
        print_standings(standings_of(found, reference), reference, found.tasks, found.budget, "test", path)
    assert capsys.readouterr().out == (STORED / name).read_text()


def test_the_stored_report_follows_from_the_records(unpacked: Path, monkeypatch) -> None:
    """The command beside it makes every table again."""
    readme = (STORED / "README.md").read_text()
    (command,) = re.findall(r"^bench report (.*) -o results/reference/micro/report$", readme, re.M)
    monkeypatch.chdir(unpacked.parent)
    (unpacked / "reference").symlink_to(ROOT / "results" / "reference")
    made = make(collect([Path(word) for word in command.split()])).tables
    found = {table.name: table for table in made}
    stored = {path.stem: path for path in (STORED / "report" / "tables").glob("*.csv")}
    assert found.keys() == stored.keys()
    for name, table in found.items():
        assert stored[name].with_suffix(".md").read_text().startswith(table.markdown()), name
        pd.testing.assert_frame_equal(
            pd.read_csv(StringIO(table.frame().to_csv(index=False))), pd.read_csv(stored[name]), rtol=1e-9
        )


def test_the_stored_tables_of_the_recipes_follow_from_their_runs(unpacked: Path, monkeypatch) -> None:
    """Those of images need the images, which are not stored."""
    monkeypatch.chdir(unpacked.parent)
    (comparison,) = Path("results/recipes").glob("comparison-*.json")
    found = {table.name: table for table in make(collect([comparison])).tables if not table.name.endswith(LATER)}
    stored = {path.stem: path for path in (STORED / "recipes" / "report" / "tables").glob("*.csv")}
    assert stored.keys() - found.keys() == {f"pictures-{task}" for task in ("geneval", "ocr", "pickscore")}
    assert {"diversity", "alarms", "scores", "key-results"} <= found.keys() <= stored.keys()
    for name, table in found.items():
        pd.testing.assert_frame_equal(
            pd.read_csv(StringIO(table.frame().to_csv(index=False))), pd.read_csv(stored[name]), rtol=1e-9
        )


def test_the_stored_page_names_no_place_of_a_machine() -> None:
    for page in ("report", "recipes/report"):
        text = "".join((STORED / page / name).read_text() for name in ("index.html", "report.md"))
        assert not re.search(r"(?<![\w.])/(tmp|home|root|work|Users|mnt)/", text)
        assert "opd_ppo" in text


def test_its_readme_shows_the_stored_comparison(compared: Compared, table: list[Standing]) -> None:
    readme = (STORED / "README.md").read_text()
    for line in table:
        own = line.label == "opd_analytic"
        gap = ["", ""] if own else [str(line.against_reference), plain(line.against_reference.p, "p")]
        cost = f"{(line.training_nfe + line.teacher_nfe) / 1000:,.0f}k"
        hidden = [f"{line.worst_task} {line.worst}", *map(str, line.beside.values())]
        row = " | ".join([line.label, str(line.gain), *gap, line.family, *hidden, target_text(line), cost])
        assert f"| {row} |" in readme, row


def told(value: Estimate | Difference, turned: bool = False) -> str:
    """As the texts write it: .090 [.051, .130]; `turned` is a loss for a change, +.077 a change."""
    if not turned:
        ends = [f"{x:+.3f}".replace("0.", ".") for x in (value.value, value.low, value.high)]
    else:
        ends = [f"{-x:.3f}".replace("0.", ".") for x in (value.value, value.high, value.low)]
    return f"{ends[0]} [{ends[1]}, {ends[2]}]"


def test_sentences_say_what_the_records_do(unpacked: Path, compared: Compared, table: list[Standing]) -> None:
    """The numbers in running text, that tables do not hold."""
    text = " ".join((STORED / "README.md").read_text().split())
    long = read(unpacked / "long" / "comparison-29b0b8b9ad.json")
    lines = {line.label: line for line in compared.lines}
    for found, p in ((lines["cascade"], ".008"), (next(x for x in long.lines if x.method == "cascade"), ".005")):
        change = found.forgetting("geneval")
        assert f"{told(change.change_in_next_stage, turned=True)} (p = {p}" in text
        assert told(change.change_after_own_stage) in text
    claims = {v.claim: v for v in score_claims([*compared.lines, *long.lines], compared.tasks)}
    nft = against(lines["multi_reward engine=nft"].records, lines["cascade"].records, compared.tasks)
    assert told(nft).replace("+", "") in text
    for claim, p in (("multi_reward engine=nft", ".049"), ("cascade", ".049")):
        name = f"analytic OPD beats {claim} at equal compute (teachers' cost not counted)"
        assert f"Holm-adjusted p 0{p}" in claims[name].quantity and f"p = {p} for both" in text
    raw = [against(x.records, lines["opd_analytic"].records, compared.tasks).p for x in compared.lines]
    together = dict(zip([x.label for x in compared.lines], holm(raw)))
    assert {plain(together[x], "p") for x in ("cascade", "multi_reward engine=nft")} == {"0.073"}
    assert "would be .073" in text
    by_label = {line.label: line for line in table}
    assert f"{by_label['off_policy'].p_equivalent:.3f}" == "0.012" and "p = .012" in text
    assert f"{by_label['off_policy'].margin:.3f}" == "0.027" and ".027" in text
    protocol = " ".join((ROOT / "results" / "reference" / "study" / "PROTOCOL.md").read_text().split())
    margins = []
    for rival in ("multi_reward engine=nft", "cascade"):
        pairs = [(by_label[name].tasks["geneval"], by_label[name].beside["geneval: strict"]) for name in ("opd_analytic", rival)]
        margins.append(" and ".join(f"{a.value - b.value:.3f}".lstrip("0") for a, b in zip(*pairs)))
    assert f"over joint RL {margins[0]}, over the cascade {margins[1]}." in protocol


def test_stored_probes_name_what_they_measured() -> None:
    for path in set((STORED / "probes").glob("*.json")) - {STORED / "probes" / "excess.json"}:
        for probe in json.loads(path.read_text()):
            assert {"method", "backbone", "student", "sampler", "params", "all"} <= set(probe)


def test_stored_records_take_their_prompts_from_the_registered_tasks(compared: Compared) -> None:
    rows = compared.lines[0].records[0].summary["models"]["student"]
    assert {prompts_known(row) for row in rows.values()} == {"task"}
    prompts = {task: len(set(design(row).clusters.tolist())) for task, row in rows.items()}
    assert prompts == {"geneval": 121, "ocr": 192, "pickscore": 192}
    assert len(rows["geneval"]["strata"]) == 288


@pytest.mark.parametrize("angle", [0, 90, 180])
def test_the_fronts_of_two_tastes_follow_from_the_runs(tmp_path: Path, angle: int) -> None:
    unpack(STORED / "fronts" / f"hue{angle}.tar.xz", tmp_path)
    found = {table.name: table for table in make(collect([tmp_path / f"hue{angle}"])).tables}
    for name in ("fronts", "fronts-points"):
        made = pd.read_csv(StringIO(found[name].frame().to_csv(index=False)))
        pd.testing.assert_frame_equal(made, pd.read_csv(STORED / "fronts" / f"hue{angle}-{name}.csv"), rtol=1e-9)
