"""Train a drawn world's preference model: python -m tasks.pickscore.train_micro --out FOLDER [--world W] [--seed S]

A small CLIPModel is trained with PickScore's loss (arXiv 2305.01569, Eq. 3) on pairs of images of the same prompt. The
preferred image is drawn at random, with odds that follow the true utility. Half of the images are rendered, some with
wrong objects, noise or blur; half are sampled from the micro base, so that the scorer has seen what a policy draws.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.backbones.micro.captions import Brief, caption, draw_brief, draw_scene, garble
from bench.backbones.micro.world import CANVAS, draw
from bench.backbones.micro.worlds import DRAWN, DrawnWorld
from bench.config.compute import PLAIN
from bench.config.resolve import describe
from bench.errors import exit_on_error
from bench.hashing import seed_of
from bench.sampler.rollout import Sampler, rollout
from bench.sampler.transitions import KERNELS
from tasks.clip import standardise
from tasks.pickscore.gold import gold
from tasks.pickscore.micro import pairs, tokenise, tokenizer

PROMPTS = 3000
"""Prompts with images, the held-out ones included."""
VIEWS = 6
"""Images per prompt: half rendered, half sampled from the base."""
HELD_OUT = 400
"""Prompts whose pairs are held out from training."""
SHARPNESS = 15.0
"""Log-odds of a preference per unit of utility."""
HEADROOM = 1.1
"""The reward reaches 1 at this multiple of the best held-out scores' range, since RL finds better images."""
STEPS, BATCH, LEARNING_RATE = 2000, 96, 1e-3


def new_model(end: int):
    """A CLIPModel of 0.5 M parameters: 16 patches (one per lattice cell), 15 words. `end` is the end token's id."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = tower | {
        "vocab_size": end + 1, "max_position_embeddings": 16, "eos_token_id": end, "bos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    vision = tower | {"image_size": CANVAS, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def rendered(brief: Brief, rng: np.random.Generator, world: DrawnWorld) -> np.ndarray:
    """A rendered image, float32 [32, 32, 3] in [0, 1], that may have wrong objects, noise or blur."""
    shown = garble(brief, rng, world.shapes) if rng.random() < 0.3 else brief
    image = draw(draw_scene(shown, rng, world.stages[-1].distant))
    if rng.random() < 0.2:
        image = image + rng.normal(0, rng.uniform(0, 0.1), image.shape)
    if rng.random() < 0.15:
        image = (image + np.roll(image, 1, 0) + np.roll(image, 1, 1)) / 3
    return image.clip(0, 1).astype(np.float32)


def sampled(prompts: list[str], seed: int, world: DrawnWorld) -> Tensor:
    """One image per prompt from the world's base [B, 3, 32, 32]; batches alternate between guidance 1 and 2."""
    described = describe(world.name)
    backbone = described.load("cpu")
    sampler = Sampler(described.levels_at(PLAIN).schedule(10), KERNELS["ode"])
    images = []
    for number, start in enumerate(range(0, len(prompts), 128)):
        conditioning = backbone.encode(prompts[start : start + 128])
        generator = torch.Generator().manual_seed(seed_of(seed, "preference", number))
        # torch's own noise, not the backbone's: the shipped scorer was trained on these images.
        noise = torch.randn(len(conditioning), *backbone.latent_shape, generator=generator)
        guidance = 1.0 + number % 2

        def field(x, sigma, conditioning=conditioning, guidance=guidance):
            return backbone.velocity(x, sigma, conditioning, None, guidance)

        images.append(backbone.decode(rollout(field, noise, sampler, generator).final))
    return torch.cat(images)


def main() -> None:
    """Train the scorer, measure it on held-out pairs, and write its weights and calibration.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and calibration.json")
    parser.add_argument("--world", choices=DRAWN, default="micro", help="the drawn world (default micro)")
    parser.add_argument("--seed", type=int, help="seed of images, labels and training (default: the world's)")
    arguments = parser.parse_args()
    world = DRAWN[arguments.world]
    seed = world.seed if arguments.seed is None else arguments.seed
    started = time.perf_counter()
    rng = np.random.default_rng([seed, 2])
    briefs = [draw_brief(rng, "illustration", world.shapes) for _ in range(PROMPTS)]
    texts = [caption(b) for b in briefs]
    drawn = np.stack([rendered(b, rng, world) for b in briefs for _ in range(VIEWS // 2)])
    from_renderer = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    from_base = sampled([t for t in texts for _ in range(VIEWS // 2)], seed, world)
    by_prompt = [part.unflatten(0, (PROMPTS, -1)) for part in (from_renderer, from_base)]
    images = torch.cat(by_prompt, 1)
    wanted = [pairs(b) for b in briefs for _ in range(VIEWS)]
    utilities = gold(images.flatten(0, 1), wanted, world.shapes)
    utility = torch.from_numpy(utilities.reshape(PROMPTS, VIEWS)).float()
    pixels = standardise(images.flatten(0, 1), CANVAS, "bicubic").unflatten(0, (PROMPTS, VIEWS))
    tokens = tokenise(world.shapes, texts)
    print(f"images ready after {time.perf_counter() - started:.0f} s; utility {utility.mean():.3f}", flush=True)
    torch.manual_seed(seed)
    model = new_model(tokenizer(world.shapes).size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS, pct_start=0.05)

    def scores(prompt: Tensor, views_BV: Tensor) -> Tensor:
        """Scores [B, V] of the images `views_BV` of the prompts [B], both given by index."""
        shown = pixels[prompt[:, None], views_BV].flatten(0, 1)
        image = model.get_image_features(pixel_values=shown).pooler_output.unflatten(0, views_BV.shape)
        text = model.get_text_features(**{k: v[prompt] for k, v in tokens.items()}).pooler_output
        unit = torch.nn.functional.normalize
        cosines = (unit(image, dim=-1) * unit(text, dim=-1)[:, None]).sum(-1)
        return model.logit_scale.exp() * cosines

    # The first HELD_OUT prompts are never drawn. Images and labels of a step depend only on the seed and the step.
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(seed_of(seed, step))
        prompt = torch.randint(HELD_OUT, PROMPTS, (BATCH,), generator=generator)
        views = torch.rand(BATCH, VIEWS, generator=generator).argsort(1)[:, :2]
        gap = utility[prompt, views[:, 0]] - utility[prompt, views[:, 1]]
        second_wins = torch.rand(BATCH, generator=generator) >= torch.sigmoid(SHARPNESS * gap)
        loss = torch.nn.functional.cross_entropy(scores(prompt, views), second_wins.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100.0))  # as CLIP does in training
        if step % 200 == 0:
            print(f"step {step} loss {loss.item():.3f} ({time.perf_counter() - started:.0f} s)", flush=True)
    model.eval()
    with torch.no_grad():
        every = torch.arange(VIEWS).expand(HELD_OUT, -1)
        learned = torch.cat([scores(p, every[: len(p)]) for p in torch.arange(HELD_OUT).split(100)])
    first, second = torch.triu_indices(VIEWS, VIEWS, 1)
    gap = utility[:HELD_OUT, first] - utility[:HELD_OUT, second]
    same = (learned[:, first] - learned[:, second]).sign() == gap.sign()
    agrees = same[gap != 0].float().mean()
    clear = same[gap.abs() > 0.1].float().mean()
    known = utility[:HELD_OUT].flatten().numpy()
    correlation = float(np.corrcoef(learned.flatten().numpy(), known)[0, 1])
    low, best = np.quantile(learned.numpy(), [0.02, 0.995])
    high = low + HEADROOM * (best - low)
    arguments.out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(arguments.out)
    calibration = {
        "low": round(float(low), 3),
        "high": round(float(high), 3),
        "held_out_pair_accuracy": round(float(agrees), 4),
        "held_out_pair_accuracy_gap_over_0.1": round(float(clear), 4),
        "correlation_with_gold": round(correlation, 4),
        "pairs": int((gap != 0).sum()),
        "command": f"python -m tasks.pickscore.train_micro --out OUT --world {world.name} --seed {seed}",
        "seconds": round(time.perf_counter() - started),
    }
    (arguments.out / "calibration.json").write_text(json.dumps(calibration, indent=1) + "\n")
    print(json.dumps(calibration, indent=1))


if __name__ == "__main__":
    exit_on_error(main)
