"""Sizes of published models, predicted from their published configurations without a download."""

import pytest

from bench.config.compute import Compute
from bench.config.resolve import describe

PARAMETERS = {
    "stabilityai/stable-diffusion-3.5-medium": 2_243_171_520,  # 2.47 with the table of positions, which is no parameter
    "stabilityai/stable-diffusion-3.5-large": 8_056_627_520,
    "black-forest-labs/FLUX.1-dev": 11_901_408_320,
    "black-forest-labs/FLUX.1-schnell": 11_891_178_560,
    "black-forest-labs/FLUX.2-klein-4B": 3_875_544_576,
    "black-forest-labs/FLUX.2-klein-base-4B": 3_875_544_576,
    "Qwen/Qwen-Image": 20_430_401_088,
    "Tongyi-MAI/Z-Image": 6_154_908_736,
    "Tongyi-MAI/Z-Image-Turbo": 6_154_908_736,
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": 1_604_462_752,
    "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers": 1_604_641_952,
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": 610_856_096,
    "stabilityai/stable-diffusion-xl-base-1.0": 2_567_463_684,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": 859_520_964,
}
"""Address on the hub -> parameters of its network, as its authors state them in round numbers."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.backbones.pipeline.source.cached", lambda *_: None)


@pytest.mark.parametrize("address", PARAMETERS)
def test_parameters_are_the_published_ones(address: str) -> None:
    descriptor = describe(f"hub:{address}")
    size = descriptor.size(Compute(**descriptor.defaults()["compute"]))
    assert size.parameters == PARAMETERS[address]
    assert size.decoder is not None and size.frozen["vae"] > 5e7
    assert size.decoder.picture_side in (512, 1024)


@pytest.mark.parametrize(
    ("address", "table", "guidance"),
    [
        ("stabilityai/stable-diffusion-3.5-large", "diffusers", 4.5),
        ("black-forest-labs/FLUX.2-klein-4B", "once", 1.0),
        ("black-forest-labs/FLUX.2-klein-base-4B", "once", 4.0),
        ("Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers", "dpm", 4.5),
        ("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "dpm_linspace", 4.5),
        ("stabilityai/stable-diffusion-xl-base-1.0", "leading", 5.0),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "leading", 7.5),
    ],
)
def test_they_are_sampled_as_their_pipelines_sample(address: str, table: str, guidance: float) -> None:
    assert describe(f"hub:{address}").defaults()["sampler"] == {"table": table, "guidance": guidance}


def test_sd35_has_recipes_and_can_be_measured_by_its_shape() -> None:
    for name in ("medium", "large"):
        descriptor = describe(f"hub:stabilityai/stable-diffusion-3.5-{name}")
        assert descriptor.recipes and descriptor.shape_only is not None
