"""Readable names of lines."""

import pytest

from bench.analysis.names import readable
from bench.registry import find, registered


@pytest.mark.parametrize(
    ("label", "params", "name"),
    [
        ("multi_reward engine=nft", {"engine": "nft"}, "Joint RL (DiffusionNFT)"),
        ("multi_reward", {"engine": "grpo_guard"}, "Joint RL (GRPO-Guard)"),
        ("multi_reward combine=pcgrad,engine=nft", {"engine": "nft"}, "Joint RL (DiffusionNFT, PCGrad)"),
        ("multi_reward", {}, "Joint RL"),
        ("multi_reward engine=own", {"engine": "own"}, "Joint RL (engine=own)"),
        ("opd_analytic", {}, "Analytic OPD"),
        ("opd_analytic kernel=cps,eta=0", {}, "Analytic OPD (kernel=cps, eta=0)"),
        ("opd_analytic start=merge,trained=[1,2]", {}, "Analytic OPD (cold start at the teachers' mean, trained=[1,2])"),
        ("a label of one's own", {}, "a label of one's own"),
    ],
)
def test_a_line_is_named_by_its_method_and_settings(label: str, params: dict, name: str) -> None:
    assert readable(label, params) == name


def test_every_method_of_the_project_has_a_title_of_its_own() -> None:
    titles = [find("method", name).title for name in registered("method") if find("method", name).__module__.startswith("methods.")]
    assert all(titles) and len(set(titles)) == len(titles) >= 15


def test_a_label_that_is_not_its_method_s_stays() -> None:
    assert readable('sft "x"', {}, "cascade") == 'sft "x"'
    assert readable("sft size=1", {}, "sft") == "SFT on teachers' samples (size=1)"
