"""Pretrain a drawn world's base: python -m bench.backbones.micro.pretrain --world WORLD --out FOLDER [--share F]

Flow matching on rendered images. If the process is killed, the same command resumes from the last checkpoint; batch and
noise are functions of seed and step, so a resumed run trains on the same data as an uninterrupted one. There are two
stages, as for large models: one on a broad mix of captions, then one on the target mix.
"""

import argparse
import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.backbones.micro.captions import MISTAKES, caption, draw_brief, draw_scene, garble
from bench.backbones.micro.codec import CHANNELS, PatchCodec
from bench.backbones.micro.stages import Stage
from bench.backbones.micro.text import WIDTH, TextEncoder
from bench.backbones.micro.tokens import MAX_TOKENS, Tokenizer
from bench.backbones.micro.world import CANVAS, CELL, draw
from bench.backbones.micro.worlds import DRAWN
from bench.errors import exit_on_error
from bench.weights.checkpoints import load_checkpoint

CAPTION_DROPOUT = 0.1
"""Fraction of samples trained with the empty prompt, for classifier-free guidance (arXiv 2207.12598)."""
BATCH = 128
WARMUP = 100
"""Steps of linear warm-up at the start of each stage."""
CONSTANT_SHARE = 0.6
"""Fraction of a stage after which the learning rate decays."""
FINAL_SHARE = 0.02
"""Learning rate at the end of a stage, as a fraction of its peak."""
SHIFT = 2.5
LOGIT_SPREAD = 1.1
"""Sigma is drawn from a logit-normal distribution with this spread, then shifted (arXiv 2403.03206)."""
EMA_DECAY = 0.999
CHECKPOINT_EVERY = 500
CODEC_PICTURES = 20_000
"""Number of images that the codec is fitted to."""


def new_transformer():
    """SD3Transformer2DModel at the micro size: 2.3 M parameters, 16 image tokens."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=CANVAS // CELL,
        patch_size=1,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=4,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=128,
        pooled_projection_dim=WIDTH,
        pos_embed_max_size=CANVAS // CELL,
    )


def render_corpus(
    stage: Stage, count: int, seed: tuple[int, int], shapes: tuple[str, ...]
) -> tuple[np.ndarray, list[str]]:
    """`count` images of these shapes, uint8 [N, 32, 32, 3], and their captions, some of which are wrong."""
    rng = np.random.default_rng(seed)
    kinds, shares = list(stage.kinds), list(stage.kinds.values())
    pictures, captions = np.empty((count, CANVAS, CANVAS, 3), np.uint8), []
    for i in range(count):
        brief = draw_brief(rng, str(rng.choice(kinds, p=shares)), shapes)
        pictures[i] = np.round(draw(draw_scene(brief, rng, stage.distant)) * 255)
        if rng.random() < MISTAKES[brief.kind]:
            brief = garble(brief, rng, shapes)
        captions.append(caption(brief))
    return pictures, captions


def learning_rate(step: int, steps: int) -> float:
    """Multiplier of the peak learning rate: linear warm-up, constant, then linear decay to FINAL_SHARE."""
    decay_from = CONSTANT_SHARE * steps
    decayed = 1 - (1 - FINAL_SHARE) * max(0.0, step - decay_from) / max(1.0, steps - decay_from)
    return min((step + 1) / WARMUP, decayed)


class Trainer:
    """Model, optimisers and EMA of one pretraining process; `step` counts across stages."""

    def __init__(self, seed: int, shapes: tuple[str, ...]):
        torch.manual_seed(seed)
        self.seed, self.step, self.shapes = seed, 0, shapes
        self.tokenizer = Tokenizer(shapes)
        # Created in this order, since both draw their weights from the seeded generator.
        parts = {"transformer": new_transformer(), "text": TextEncoder(self.tokenizer.size)}
        self.model = nn.ModuleDict(parts)
        for name, parameter in self.model.named_parameters():
            # Zero-initialised modulation and output as in DiT (arXiv 2212.09748): every block starts as the identity.
            if ".norm1" in name or "norm_out.linear" in name or "proj_out" in name:
                nn.init.zeros_(parameter)
        self.ema = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.optimizers = self._new_optimizers()

    def _new_optimizers(self) -> list[torch.optim.Optimizer]:
        blocks: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            matrix = parameter.ndim == 2 and "transformer_blocks" in name and ".norm" not in name
            (blocks if matrix else rest).append(parameter)
        return [
            torch.optim.Muon(blocks, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, betas=(0.9, 0.99), weight_decay=0.01, fused=True),
        ]

    @torch.no_grad()
    def restart(self) -> None:
        """Start a stage from the EMA weights, with new optimisers."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.ema[name])
        self.optimizers = self._new_optimizers()

    def update(self, latents_NCHW: Tensor, ids_NT: Tensor, rate: float) -> float:
        """One optimiser step on a random batch; returns the flow-matching loss.

        `latents_NCHW` and `ids_NT` are the stage's corpus, and `rate` is the learning rate of this step.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        index = torch.randint(len(latents_NCHW), (BATCH,), generator=generator)
        x0, ids = latents_NCHW[index].float(), ids_NT[index]
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.sigmoid(LOGIT_SPREAD * torch.randn(BATCH, generator=generator))
        sigma = SHIFT * t / (1 + (SHIFT - 1) * t)
        ids = ids * (torch.rand(BATCH, 1, generator=generator) >= CAPTION_DROPOUT)  # the empty prompt is all zeros
        weight = sigma.view(-1, 1, 1, 1)
        math_backend = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with torch.autocast("cpu", torch.bfloat16), math_backend:
            sequence, pooled = self.model["text"](ids)
            x = (1 - weight) * x0 + weight * noise
            velocity = self.model["transformer"](x, sequence, pooled, 1000 * sigma, return_dict=False)[0]
        loss = (velocity.float() - (noise - x0)).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(EMA_DECAY, self.step / (self.step + 10))
        live = [p.detach() for p in self.model.parameters()]
        torch._foreach_lerp_(list(self.ema.values()), live, 1 - decay)
        return loss.item()

    def save(self, path: Path) -> None:
        """Write a checkpoint, replacing the previous one atomically."""
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        state = {"step": self.step, "model": self.model.state_dict(), "ema": self.ema, "optimizers": optimizers}
        torch.save(state, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        """Restore a checkpoint. Raises DamagedError if it cannot be read."""
        state = load_checkpoint(path, "checkpoint of pretraining")
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self.ema = {name: state["ema"][name] for name in self.ema}
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def export(self, folder: Path, codec: PatchCodec, record: dict) -> None:
        """Write the EMA weights in half precision, the codec and the record, in the layout that the backbone loads."""
        from diffusers.models import ModelMixin
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        exported = Trainer(self.seed, self.shapes).model
        exported.load_state_dict(self.model.state_dict() | self.ema)
        transformer = exported["transformer"].half()
        assert isinstance(transformer, ModelMixin)  # as created by `new_transformer`
        transformer.save_pretrained(folder / "transformer")
        text = exported["text"].state_dict()
        save_file({name: t.half().contiguous() for name, t in text.items()}, folder / "text.safetensors")
        tensors = codec.state_dict()
        save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "codec.safetensors")
        (folder / "pretraining.json").write_text(json.dumps(record, indent=1) + "\n")


def prepare(stage: Stage, count: int, seed: tuple[int, int], codec: PatchCodec, trainer: Trainer):
    """The corpus of a stage: latents in half precision [N, C, h, w], and token ids [N, T]."""
    pictures, captions = render_corpus(stage, count, seed, trainer.shapes)
    with torch.no_grad():
        # In chunks, because all images in float32 would take several times the memory of their latents.
        latents = []
        for chunk in np.array_split(pictures, 100):
            images = torch.from_numpy(chunk).permute(0, 3, 1, 2) / 255
            latents.append(codec.encode(images).half())
        return torch.cat(latents), trainer.tokenizer(captions)


def main() -> None:
    """Parse the command line, pretrain both stages and export the weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, the log and the weights")
    parser.add_argument(
        "--share", type=float, default=1.0, help="fraction of the samples and images of each stage (default 1)"
    )
    parser.add_argument("--world", choices=DRAWN, default="micro", help="the drawn world (default micro)")
    parser.add_argument("--seed", type=int, help="random seed of the data and the weights (default: the world's)")
    arguments = parser.parse_args()
    world = DRAWN[arguments.world]
    seed = world.seed if arguments.seed is None else arguments.seed
    stages = world.stages
    from bench.printing import progress_bar

    arguments.out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = arguments.out / "checkpoint.pt", arguments.out / "log.jsonl"
    counts = [math.ceil(stage.pictures * arguments.share) for stage in stages]
    steps = [math.ceil(stage.samples * arguments.share / BATCH) for stage in stages]
    ends = np.cumsum(steps).tolist()
    codec_count = min(CODEC_PICTURES, counts[0])
    first, _ = render_corpus(stages[0], codec_count, (seed, 1), world.shapes)
    codec = PatchCodec.fit(first.astype(np.float32) / 255)
    trainer = Trainer(seed, world.shapes)
    seconds = 0.0
    if checkpoint.exists():
        trainer.load(checkpoint)
        seconds = json.loads((arguments.out / "clock.json").read_text())["seconds"]
    running = None
    with progress_bar() as progress, log.open("a") as lines:
        bar = progress.add_task("pretraining", total=ends[-1], completed=trainer.step)
        for number, (stage, begin, end) in enumerate(zip(stages, [0, *ends], ends)):
            if trainer.step >= end:
                continue
            latents, ids = prepare(stage, counts[number], (seed, number + 1), codec, trainer)
            # Only at the stage's first step; a resumed process has loaded the optimisers instead.
            if number and trainer.step == begin:
                trainer.restart()
            started = time.perf_counter() - seconds
            while trainer.step < end:
                rate = stage.rate * learning_rate(trainer.step - begin, end - begin)
                loss = trainer.update(latents, ids, rate)
                if not math.isfinite(loss):
                    raise SystemExit(f"the loss is {loss} at step {trainer.step}; the last checkpoint is still valid")
                running = loss if running is None else 0.98 * running + 0.02 * loss
                progress.update(bar, completed=trainer.step, description=f"pretraining, loss {running:.4f}")
                seconds = time.perf_counter() - started
                if trainer.step % 100 == 0 or trainer.step == end:
                    row = {"step": trainer.step, "samples": trainer.step * BATCH, "loss": running, "seconds": seconds}
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
                if trainer.step % CHECKPOINT_EVERY == 0:
                    (arguments.out / "clock.json").write_text(json.dumps({"seconds": seconds}))
                    trainer.save(checkpoint)
    record = {
        "command": f"python -m bench.backbones.micro.pretrain --out OUT --world {world.name} "
        f"--share {arguments.share:g} --seed {seed}",
        "steps": ends[-1],
        "batch": BATCH,
        "samples": ends[-1] * BATCH,
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "final_loss": running,
        "stages": [asdict(stage) for stage in stages],
        "mistakes": MISTAKES,
        "max_tokens": MAX_TOKENS,
        "torch": torch.__version__,
    }
    trainer.export(arguments.out / "base", codec, record)


if __name__ == "__main__":
    exit_on_error(main)
