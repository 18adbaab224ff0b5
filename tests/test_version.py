"""The version stands in one place, bench/__init__.py, and what repeats it for people agrees."""

import re
from pathlib import Path

import yaml
from setuptools.config.pyprojecttoml import read_configuration

import bench

ROOT = Path(__file__).parent.parent


def test_the_package_has_the_version_of_the_code() -> None:
    assert read_configuration(ROOT / "pyproject.toml")["project"]["version"] == bench.__version__


def test_changelog_and_citation_name_the_version_and_its_date() -> None:
    sections = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    released = [section for section in sections if section != "Unreleased"]
    assert sections.index(released[0]) == len(sections) - len(released)  # "Unreleased" stands at the top
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert released[0] == f"{bench.__version__} - {citation['date-released']}"
    assert citation["version"] == bench.__version__


def test_sections_of_the_changelog_are_dated_newest_first() -> None:
    sections = re.findall(r"^## (?!Unreleased)(.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    dated = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) - (\d{4}-\d\d-\d\d)", section) for section in sections]
    assert all(dated), sections
    versions = [tuple(map(int, match.groups()[:3])) for match in dated if match]
    dates = [match[4] for match in dated if match]
    assert versions == sorted(set(versions), reverse=True)
    assert dates == sorted(dates, reverse=True)
