"""Pipelines of every family with random weights, as small as diffusers' own tests make theirs, saved in its format."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.once import once

LETTERS = [chr(c) for c in range(33, 127)]
SIDE = 8
"""Latent pixels along one side of the images that tests draw."""


@dataclass(frozen=True)
class Tiny:
    """A tiny pipeline."""

    make: Callable[[], Any]
    """Makes diffusers' pipeline."""
    family: str
    """The family that runs it."""
    call: Callable[[Any, torch.Tensor, float], dict[str, Any]]
    """(diffusers' pipeline, noise [B, C, h, w], guidance scale) -> what to call it with besides prompts and steps."""
    downsampling: int = 1
    """Image pixels per latent pixel along one side, of its VAE."""
    without: tuple[str, ...] = ()
    """Optional parts that it does not have."""

    more: tuple[str, ...] = ()
    """Further settings that its network needs."""

    resolution: int | None = None
    """Pixels along one side, where they are not those of `side`."""

    @property
    def side(self) -> int:
        """Pixels along one side of the images that tests draw."""
        return self.resolution or SIDE * self.downsampling

    def draw(
        self, folder: Path, prompts: list[str], noise: torch.Tensor, steps: int, guidance: float,
        adapter: Path | None = None, dtype: torch.dtype = torch.float32, negative: str = "",
    ) -> torch.Tensor:  # fmt: skip
        """The images [B, 3, H, W] that stock diffusers draws from noise, with an adapter if one is given."""
        from diffusers import DiffusionPipeline
        from peft import PeftModel

        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=dtype, **dict.fromkeys(self.without))
        pipeline.set_progress_bar_config(disable=True)
        if adapter and hasattr(pipeline, "load_lora_weights"):
            pipeline.load_lora_weights(adapter)
        elif adapter:  # a class without a loader: peft changes the network in place
            PeftModel.from_pretrained(pipeline.transformer, adapter)
        given = self.call(pipeline, noise.to(dtype), guidance)
        if negative:
            given |= as_negative(pipeline, [negative] * len(prompts), given)
        size = {"height": self.side, "width": self.side}
        # A copy: Z-Image's pipeline writes its template into the list that it is given.
        return pipeline(prompt=list(prompts), num_inference_steps=steps, output_type="pt", **size, **given).images.float()

    def folder(self, factory: pytest.TempPathFactory) -> Path:
        """The pipeline on disk. Not to be changed."""
        name = next(name for name, tiny in PIPELINES.items() if tiny is self)

        def save(folder: Path) -> None:
            torch.manual_seed(0)
            self.make().save_pretrained(folder)

        return once(factory, f"pipeline-{name}", save)


def as_negative(pipeline: Any, prompts: list[str], given: dict[str, Any]) -> dict[str, Any]:
    """What to call a pipeline with for negative prompts: the prompts, or their embeddings where it takes no words."""
    if "negative_prompt" in inspect.signature(pipeline.__call__).parameters:
        return {"negative_prompt": prompts}
    lengths = {key: value for key, value in given.items() if key == "max_sequence_length"}
    embedded, _ = pipeline.encode_prompt(prompts, **lengths)
    return {"negative_prompt_embeds": embedded}


def save_teachers(backbone: str, folder: Path, tasks: tuple[str, ...]) -> None:
    """Save an adapter with random weights for every task, as a teacher of a pipeline."""
    # Imported here, because conftest.py sets the environment first.
    from bench.backbones.adapters import Shape
    from bench.config.resolve import describe
    from tests.methods.conftest import shake

    loaded = describe(backbone).load("cpu")
    for task in tasks:
        loaded.adapters.add(task, Shape(2, 4.0))
        shake(loaded, task)
        loaded.adapters.save(task, folder / task, base="tiny")


def clip_tokenizer() -> Any:
    """One token per letter."""
    from transformers import CLIPTokenizer

    words = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def clip_text(kind: str) -> Any:
    """A text model of a class of transformers."""
    import transformers

    size = 2 * len(LETTERS) + 2
    config = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=32, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
    )  # fmt: skip
    return getattr(transformers, kind)(config)


def t5() -> tuple[Any, Any]:
    """T5's encoder and its tokenizer of letters."""
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    tokenizer = T5TokenizerFast(vocab=[*special, *((letter, -3.0) for letter in LETTERS)], extra_ids=0)
    config = T5Config(vocab_size=len(LETTERS) + 4, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return T5EncoderModel(config), tokenizer


def vae(levels: int, shift: float | None = 0.06) -> Any:
    """An AutoencoderKL that halves the resolution between its levels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,) * levels, norm_num_groups=1, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        scaling_factor=1.5, shift_factor=shift, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def sd3() -> Any:
    """StableDiffusion3Pipeline without T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    kind, tokenizer = "CLIPTextModelWithProjection", clip_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=64, caption_projection_dim=32, pooled_projection_dim=64,
        pos_embed_max_size=8,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, vae=vae(1), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=clip_text(kind), tokenizer=tokenizer, text_encoder_2=clip_text(kind), tokenizer_2=tokenizer,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def flux(distilled: bool) -> Any:
    """FluxPipeline as FLUX.1-dev, whose network takes the guidance scale, or as FLUX.1-schnell."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    encoder, tokenizer = t5()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, guidance_embeds=distilled, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0 if distilled else 1.0, use_dynamic_shifting=distilled)
    return FluxPipeline(
        scheduler=scheduler, vae=vae(2), text_encoder=clip_text("CLIPTextModel"), tokenizer=clip_tokenizer(),
        text_encoder_2=encoder, tokenizer_2=tokenizer, transformer=transformer,
    )  # fmt: skip


def call_sd3(pipeline: Any, noise: torch.Tensor, guidance: float) -> dict[str, Any]:
    """Classifier-free guidance with the empty prompt; as many tokens as published post-training encodes."""
    return {"latents": noise, "guidance_scale": guidance, "max_sequence_length": 128}


def call_flux(pipeline: Any, noise: torch.Tensor, guidance: float) -> dict[str, Any]:
    """The guidance scale as an input if the network takes it, else classifier-free guidance with the empty prompt."""
    given = {"latents": pipeline._pack_latents(noise, *noise.shape), "max_sequence_length": 128}
    if pipeline.transformer.config.guidance_embeds:
        return given | {"guidance_scale": guidance}
    return given | {"true_cfg_scale": guidance, "negative_prompt": [""] * len(noise)}


def qwen_tokenizer() -> tuple[Any, int]:
    """Qwen's tokenizer with one token per letter, and its number of tokens."""
    from transformers import Qwen2Tokenizer

    words = {letter: i for i, letter in enumerate([*LETTERS, "\u0120", "\u010a", "<|endoftext|>"])}
    tokenizer = Qwen2Tokenizer(vocab=words, merges=[], pad_token="<|endoftext|>")
    tokenizer.chat_template = "{% for message in messages %}<{{ message.content }}>{% endfor %}"
    return tokenizer, len(words)


def z_image() -> Any:
    """ZImagePipeline with a small Qwen3."""
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokenizer, size = qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    transformer = ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[256, 32, 32],
    )  # fmt: skip
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(2), text_encoder=Qwen3Model(config),
        tokenizer=tokenizer, transformer=transformer,
    )  # fmt: skip


def qwen_image() -> Any:
    """QwenImagePipeline with a small Qwen2.5-VL."""
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer, size = qwen_tokenizer()
    text = {
        "vocab_size": size, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    decoder = AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2], num_res_blocks=1, temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.0, 0.3], latents_std=[1.1, 0.9, 2.0, 0.5],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02
    )
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))
    return QwenImagePipeline(
        scheduler=scheduler, vae=decoder, text_encoder=encoder, tokenizer=tokenizer, transformer=transformer
    )


def call_qwen_image(pipeline: Any, noise: torch.Tensor, guidance: float) -> dict[str, Any]:
    """Classifier-free guidance with the empty prompt."""
    latents = pipeline._pack_latents(noise, *noise.shape)
    return {"latents": latents, "true_cfg_scale": guidance, "negative_prompt": [""] * len(noise)}


def call_z_image(pipeline: Any, noise: torch.Tensor, guidance: float) -> dict[str, Any]:
    """diffusers' scale is one less."""
    return {"latents": noise.float(), "guidance_scale": guidance - 1, "max_sequence_length": 128}


def unet(**more: Any) -> Any:
    """A UNet that halves the resolution once."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2, **more,
    )  # fmt: skip


BETAS: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def stable_diffusion(predicts_noise: bool) -> Any:
    """StableDiffusionPipeline as version 1.5, or one that predicts v down to noise alone."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    if predicts_noise:
        own = {"steps_offset": 1, "set_alpha_to_one": False}
    else:
        own = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return StableDiffusionPipeline(
        unet=unet(cross_attention_dim=32), vae=vae(2, None), scheduler=DDIMScheduler(**BETAS, clip_sample=False, **own),
        text_encoder=clip_text("CLIPTextModel"), tokenizer=clip_tokenizer(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> Any:
    """StableDiffusionXLPipeline."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    network = unet(
        cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8, use_linear_projection=True,
        projection_class_embeddings_input_dim=32 + 6 * 8, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    tokenizer = clip_tokenizer()
    return StableDiffusionXLPipeline(
        unet=network, vae=vae(4, None), scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        text_encoder=clip_text("CLIPTextModel"), tokenizer=tokenizer,
        text_encoder_2=clip_text("CLIPTextModelWithProjection"), tokenizer_2=tokenizer,
    )  # fmt: skip


def call_guided(pipeline: Any, noise: torch.Tensor, guidance: float) -> dict[str, Any]:
    """Classifier-free guidance, as the pipeline guides without a negative prompt."""
    return {"latents": noise, "guidance_scale": guidance}


def pixart() -> Any:
    """PixArtSigmaPipeline. At order 1, DPM-Solver++ is DDIM."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    encoder, tokenizer = t5()
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8,
        cross_attention_dim=16, caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    return PixArtSigmaPipeline(
        transformer=transformer, vae=vae(2, None), scheduler=DPMSolverMultistepScheduler(solver_order=1),
        text_encoder=encoder, tokenizer=tokenizer,
    )  # fmt: skip


def sana() -> Any:
    """SanaPipeline with a small Gemma 2."""
    from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model, GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", "\n", *LETTERS]
    tokenizer = GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    config = Gemma2Config(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    transformer = SanaTransformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2,
        attention_head_dim=4, num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8,
        caption_channels=8,
    )  # fmt: skip
    autoencoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8), encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)), encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=[1, 1, 1], downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.5,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        solver_order=1, use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
    )
    return SanaPipeline(
        transformer=transformer, vae=autoencoder, scheduler=scheduler, text_encoder=Gemma2Model(config),
        tokenizer=tokenizer,
    )  # fmt: skip


def flux2() -> Any:
    """Flux2KleinPipeline, undistilled, whose text has the states of layers 9, 18 and 27."""
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer, size = qwen_tokenizer()
    config = Qwen3Config(
        vocab_size=size, hidden_size=16, intermediate_size=16, num_hidden_layers=27, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8,
    )  # fmt: skip
    transformer = Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, guidance_embeds=False, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    decoder = AutoencoderKLFlux2(
        block_out_channels=(8,), norm_num_groups=1, latent_channels=4, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), layers_per_block=1,
    )  # fmt: skip
    decoder.bn.running_mean.normal_()
    decoder.bn.running_var.uniform_(0.5, 2.0)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0), vae=decoder,
        text_encoder=Qwen3ForCausalLM(config), tokenizer=tokenizer, transformer=transformer,
    )  # fmt: skip


def call_masked(pipeline: Any, noise: torch.Tensor, guidance: float) -> dict[str, Any]:
    """Images of the size that is asked for, of prompts as they are."""
    given = {"clean_caption": False, "use_resolution_binning": False}
    return {"latents": noise, "guidance_scale": guidance, **given}


PIPELINES = {
    "sd3": Tiny(sd3, "sd3", call_sd3, without=("text_encoder_3", "tokenizer_3")),
    "flux-dev": Tiny(lambda: flux(distilled=True), "flux", call_flux, downsampling=2),
    "flux-schnell": Tiny(lambda: flux(distilled=False), "flux", call_flux, downsampling=2),
    "flux2-klein": Tiny(flux2, "flux2_klein", call_guided, downsampling=2),
    "pixart-sigma": Tiny(pixart, "pixart_sigma", call_masked, downsampling=2),
    "qwen-image": Tiny(qwen_image, "qwen_image", call_qwen_image, downsampling=2),
    "sana": Tiny(sana, "sana", call_masked, downsampling=4),
    "sd15": Tiny(lambda: stable_diffusion(predicts_noise=True), "stable_diffusion", call_guided, downsampling=2),
    "sd-v": Tiny(lambda: stable_diffusion(predicts_noise=False), "stable_diffusion", call_guided, downsampling=2),
    "sdxl": Tiny(sdxl, "sdxl", call_guided, downsampling=8),
    "z-image": Tiny(z_image, "z_image", call_z_image, downsampling=2, more=("compute.max_sequence_length=128",)),
}
"""Name -> pipeline. Every family has at least one (tests/backbones/test_every_family.py)."""
