"""Smaller questions about codebooks, each measured once, on the toy.

Run: OMP_NUM_THREADS=1 python benchmarks/codebook_questions.py QUESTION [QUESTION …]
     each is answered anew and kept in results/codebook_questions.json.
masks: a token a pixel makes 1,056 states. What do the sparse masks save, and what do they cost?
search: while CLIP is searched, do its score and the judge's verdict rise together? And best of 16?
vectors: the same where the code vectors of a VQ-VAE move, as in VQGAN+CLIP.
bound: the bound on ln p(image) with a uniform prior, then with the trained one.
drawn: a prior that learns from tokens drawn from q (footnote 6), beside one of the likeliest ones.
joint: both stages trained at once for the one bound, beside one after the other.
One seed each: the differences between seeds are not measured.
Source: Ramesh et al. 2021, arXiv:2102.12092, section 2; what minidalle/priors/guided.py names.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from codebooks import cases_of, find_judge, setting
from torch import Tensor

from minidalle import data
from minidalle.config import get_config
from minidalle.dvae import logit_laplace_nll, map_pixels
from minidalle.evaluation import metrics
from minidalle.evaluation.judge import Judge
from minidalle.files import write_text
from minidalle.generate import Pipeline, sample
from minidalle.models import build, load
from minidalle.priors.guided import search
from minidalle.stages import SHIPPED, train_stage
from minidalle.train import fit
from minidalle.training.optim import learning_rate, make_optimizer
from minidalle.training.run import autocast
from minidalle.training.spread import spread_codes

RESULTS = Path(__file__).resolve().parent / "results" / "codebook_questions.json"
TOY = SHIPPED / "toy"
PIXELS = [  # 32 text states and a token for each of 32 x 32 pixels
    "codebook=palette", "dvae.n_pools=0", "dvae.vocab_size=512", "dalle.image_vocab=512",
    "dalle.grid=32", "dalle.kernel=11", "dalle.text_len=32", "clip.context_length=33",
]  # fmt: skip


# ---------------------------------------------------------------- a token a pixel


def see_everything(prior) -> None:
    """Let every state see all earlier ones, in every layer: what the masks are compared with."""
    for block in prior.transformer.blocks:
        attention = block.attention

        def forward(x: Tensor, attention=attention) -> Tensor:
            q, k, v = attention.project(x)
            return attention.merge(F.scaled_dot_product_attention(q, k, v, is_causal=True))

        attention.forward = forward


def masks(updates: int = 16, batch: int = 2) -> list[dict]:
    """Seconds an update and loss of the same prior on pixels: sparse both ways, and causal."""
    tokenizer, rows = load(TOY, "tokenizer"), []
    images, captions = data.first(data.load(get_config("toy"), "train"), (updates + 8) * batch)
    for name in ("gathered", "dense", "all earlier states"):
        method = "dense" if name.startswith("all") else name
        config = get_config("toy", [*PIXELS, f"dalle.attention={method}"])
        palette, prior = build(config, "dvae"), build(config, "dalle").train()
        spread_codes(palette, images[:32] / 255, torch.Generator().manual_seed(0))
        tokens = palette.tokens(images / 255).flatten(1)  # (n, 1024)
        text = tokenizer.encode_batch(captions, config.dalle.caption_len)
        if name.startswith("all"):
            see_everything(prior)
        optimizer = make_optimizer(prior, config.train_dalle)
        seconds, losses = {"bfloat16": [], "float32": []}, []
        # Learn from all batches but the last eight: four test, four are timed in float32.
        for step in range(updates + 8):
            part = slice(step * batch, (step + 1) * batch)
            given = {"text": text[part], "tokens": tokens[part]}
            tested = updates <= step < updates + 4
            precision = "bfloat16" if step < updates + 4 else "float32"
            began = time.process_time()
            with autocast(precision, "cpu"), torch.set_grad_enabled(not tested):
                loss, found = prior.loss(given, step, torch.Generator().manual_seed(step))
            if tested:
                losses.append(found["image_nats"].item())
                continue
            loss.backward()
            if step < updates:
                optimizer.step()
            optimizer.zero_grad()
            seconds[precision].append(time.process_time() - began)
        medians = {kind: sorted(found)[len(found) // 2] for kind, found in seconds.items()}
        states = config.dalle.text_len + config.dalle.grid**2
        rows.append({"attention": name, "states": states, "batch": batch, "updates": updates,
                     "seconds": medians, "image_nats": sum(losses) / len(losses)})  # fmt: skip
    return rows


# ---------------------------------------------------------------- search under CLIP


def verdict(images: Tensor, caption: str, wanted: dict, pipeline, judge: Judge) -> list[float]:
    """CLIP's score, share of the attributes that are right, share of images where all are."""
    right = metrics.accuracy(judge.read(images), [wanted] * len(images))
    exact = right.pop("exact")["share"]
    score = pipeline.score([caption], images).mean().item()
    return [score, sum(part["share"] for part in right.values()) / len(right), exact]


def climb(codebook, pipeline, judge: Judge, captions, wanted, steps: int) -> dict[int, list[float]]:
    """Mean verdicts along a search for each caption, by the number of steps done."""
    curve = {m: [] for m in (1, 2, 4, 8, 15, 30, 60, 120) if m <= steps}
    for i, caption in enumerate(captions):

        def watch(step: int, tokens: Tensor, i: int = i, caption: str = caption) -> None:
            if step in curve:
                images = codebook.decode(tokens).detach()
                curve[step].append(verdict(images, caption, wanted[i], pipeline, judge))

        generator = torch.Generator().manual_seed(i)
        search(codebook, pipeline.reranker, caption, 1, steps, generator=generator, watch=watch)
    return {m: mean(rows) for m, rows in curve.items()}


def mean(rows: list[list[float]]) -> list[float]:
    """The mean of each column."""
    return torch.tensor(rows).mean(0).tolist()


def vectors(steps: int = 120, n_captions: int = 16, updates: int = 1000) -> dict:
    """The same search where vectors move, not logits: in a VQ-VAE with averages."""
    pipeline, judge, (cases, pairs) = Pipeline.load(TOY), find_judge("toy"), cases_of("toy")
    words = tuple(f"train_dvae.{f}={updates}" for f in ("steps", "eval_every", "save_every"))
    with tempfile.TemporaryDirectory() as folder:
        train_stage(setting("toy", "VQ-VAE, averages", 0, words), "dvae", folder)
        codebook = load(folder, "dvae")
    again = codebook.decode(codebook.tokens(cases.images / 255)).detach()
    rebuilt = metrics.accuracy(judge.read(again), cases.attributes, pairs)["exact"]
    some = cases.captions[:n_captions], cases.wanted[:n_captions]
    return {"captions": n_captions, "updates": updates, "rebuilt": rebuilt,
            "curve": climb(codebook, pipeline, judge, *some, steps)}  # fmt: skip


def under_clip(steps: int = 120, n_captions: int = 16) -> dict:
    """CLIP's score and the judge's verdict along a search of each caption; then best of k."""
    pipeline, judge, (cases, _) = Pipeline.load(TOY), find_judge("toy"), cases_of("toy")
    captions, wanted = cases.captions[:n_captions], cases.wanted[:n_captions]
    best = {k: [] for k in (1, 2, 4, 8, 16)}
    true = [
        verdict(cases.images[i : i + 1] / 255, captions[i], wanted[i], pipeline, judge)
        for i in range(n_captions)
    ]
    began = time.process_time()
    curve = climb(pipeline.codebook, pipeline, judge, captions, wanted, steps)
    searching = time.process_time() - began
    began = time.process_time()
    for i, caption in enumerate(captions):
        generator = torch.Generator().manual_seed(i)
        images, scores = pipeline.generate(caption, 16, 16, generator=generator, progress=False)
        order = torch.randperm(16, generator=generator)  # as they came, before the choice
        for k in best:
            first = order[:k][scores[order[:k]].argmax()]
            chosen = images[first : first + 1]
            best[k].append(verdict(chosen, caption, wanted[i], pipeline, judge))
    drawing = time.process_time() - began

    return {
        "captions": n_captions,
        "curve": curve,
        "best_of": {k: mean(rows) for k, rows in best.items()},
        "true": mean(true),
        "seconds_a_step": searching / n_captions / steps,
        "seconds_best_of_16": drawing / n_captions,
    }


# ---------------------------------------------------------------- the bound


@torch.no_grad()
def bound(dvae, priors: dict, images: Tensor, text: Tensor) -> dict[str, float]:
    """Mean nats of an image: of its pixels given tokens drawn from q, and of these tokens.

    priors: by name; "uniform" is added. A token costs ln q(z | x) - ln p(z | y). images
    (N, 3, S, S) in [0, 1], text (N, L). Lower is better; the sum bounds -ln p(x | y).
    """
    generator, sums = torch.Generator().manual_seed(0), {}
    for x, y in zip(images.split(64), text.split(64), strict=True):
        log_q = dvae.logits(x).movedim(1, -1).float().log_softmax(-1)  # (B, h, w, K)
        q = log_q.exp().flatten(0, 2)  # (B * h * w, K)
        z = torch.multinomial(q, 1, generator=generator).view(log_q.shape[:3])
        mu, log_b = dvae.decode_vectors(dvae.code_vectors(z))
        ln_q = log_q.gather(-1, z[..., None]).sum()
        costs = {"pixels": logit_laplace_nll(map_pixels(x), mu, log_b).sum()}
        costs["uniform"] = ln_q + z.numel() * math.log(log_q.shape[-1])
        for name, prior in priors.items():
            costs[name] = ln_q - prior.log_likelihood(y, z.flatten(1))[1].sum()
        for name, value in costs.items():
            sums[name] = sums.get(name, 0.0) + value.item() / len(images)
    return sums


def lowered() -> dict[str, float]:
    """The bound of the shipped toy with a uniform prior, and with its own."""
    dvae, prior, tokenizer = (load(TOY, stage) for stage in ("dvae", "dalle", "tokenizer"))
    cases, _ = cases_of("toy")
    text = tokenizer.encode_batch(cases.captions, prior.caption_len)
    return bound(dvae, {"trained": prior}, cases.images / 255, text)


def drawn_tokens(steps: int = 120) -> list[dict]:
    """Two priors of the shipped dVAE, of the likeliest tokens and of drawn ones."""
    dvae, tokenizer, judge = load(TOY, "dvae"), load(TOY, "tokenizer"), find_judge("toy")
    (cases, pairs), rows = cases_of("toy"), []
    for drawn in (False, True):
        fields = dict(steps=steps, eval_every=steps, save_every=steps, draw_tokens=drawn)
        words = [f"train_dalle.{k}={v}" for k, v in fields.items()]
        config = get_config("toy", [*words, f"data.n_train={40 * steps}"])
        ready = data.batches(data.load(config, "train"), config, "dalle", tokenizer, dvae)
        with tempfile.TemporaryDirectory() as folder:
            prior = build(config, "dalle")
            fit(prior, ready, config.train_dalle, folder)
        text = tokenizer.encode_batch(cases.captions, prior.caption_len)
        found = bound(dvae, {"prior": prior}, cases.images / 255, text)
        with torch.no_grad():
            likeliest = dvae.tokens(cases.images / 255).flatten(1)
            nats = -prior.log_likelihood(text, likeliest)[1].mean().item()
        tokens = sample(prior, text, len(text), generator=torch.Generator().manual_seed(0))
        marks = metrics.accuracy(judge.read(dvae.decode(tokens)), cases.wanted, pairs)["exact"]
        rows.append({"learnt_from": "drawn" if drawn else "likeliest", "updates": steps,
                     "nats_likeliest": nats, "bound": found["pixels"] + found["prior"],
                     "cost_drawn": found["prior"], "exact": marks})  # fmt: skip
    return rows


# ---------------------------------------------------------------- both stages at once


def joint_loss(dvae, prior, batch: dict, step: int, generator) -> Tensor:
    """Minus the bound per pixel value, with the KL to the prior's own distribution.

    The prior reads drawn tokens and is asked for all of q, so its cross-entropy moves both.
    """
    tau, beta = dvae.schedule(step)
    logits = dvae.logits(batch["images"]).movedim(1, -1).float()  # (B, h, w, K)
    log_q = logits.log_softmax(-1)
    u = torch.rand(log_q.shape, generator=generator).clamp(min=2**-25)
    noisy = logits - torch.log(-torch.log(u))
    z, soft = noisy.argmax(-1), (noisy / tau).softmax(-1)
    mu, log_b = dvae.decode_vectors(dvae.mix_vectors(soft))
    nll = logit_laplace_nll(map_pixels(batch["images"]), mu.float(), log_b.float()).mean()
    image_logits = prior(batch["text"], z.flatten(1))[1]
    log_p = image_logits.float().log_softmax(-1).view(log_q.shape)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    return nll + beta * kl * dvae.tokens_per_value


def joint(steps: int = 300, batch: int = 8) -> list[dict]:
    """As many updates of both stages at once and one after the other, from the same start."""
    config = get_config("toy", [
        f"dvae.tau_steps={steps}", f"dvae.beta_steps={steps * 2000 // 4800}",
        f"train_dvae.steps={steps}", f"train_dalle.steps={steps}", f"data.n_train={steps * batch}",
        f"train_dalle.batch_size={batch}", "train_dalle.lr=2.5e-3", "train_dalle.muon_lr=0.0125",
    ])  # fmt: skip
    tokenizer, (cases, _), rows = load(TOY, "tokenizer"), cases_of("toy"), []
    images, captions = data.first(data.load(config, "train"), steps * batch)
    text = tokenizer.encode_batch(captions, config.dalle.caption_len)
    tests = tokenizer.encode_batch(cases.captions, config.dalle.caption_len)
    for at_once in (False, True):
        dvae, prior = build(config, "dvae").train(), build(config, "dalle").train()
        spread_codes(dvae, images[:400] / 255, torch.Generator().manual_seed(0))
        trained = {"dvae": dvae, "dalle": prior}
        training = {name: getattr(config, f"train_{name}") for name in trained}
        optimizers = {name: make_optimizer(m, training[name]) for name, m in trained.items()}
        began = time.process_time()
        for names in [("dvae", "dalle")] if at_once else [("dvae",), ("dalle",)]:
            for step in range(steps):
                part = slice(step * batch, (step + 1) * batch)
                given = {"images": images[part] / 255, "text": text[part]}
                generator = torch.Generator().manual_seed(step)
                with autocast("auto", "cpu"):
                    if at_once:
                        loss = joint_loss(dvae, prior, given, step, generator)
                    elif names == ("dvae",):
                        loss = dvae.loss(given, step, generator)[0]
                    else:
                        with torch.no_grad():
                            given["tokens"] = dvae.tokens(given["images"]).flatten(1)
                        loss = prior.loss(given, step, generator)[0]
                loss.backward()
                for name in names:
                    for group in optimizers[name].param_groups:
                        group["lr"] = learning_rate(step, training[name]) * group.get("rate", 1.0)
                    torch.nn.utils.clip_grad_norm_(trained[name].parameters(), 1.0)
                    optimizers[name].step()
                    optimizers[name].zero_grad()
        found = bound(dvae.eval(), {"prior": prior.eval()}, cases.images / 255, tests)
        with torch.no_grad():
            tokens = dvae.tokens(cases.images / 255)
            again = dvae.decode(tokens)
        rows.append({"stages": "at once" if at_once else "one after the other", "updates": steps,
                     "seconds": time.process_time() - began, **found,
                     "bound": found["pixels"] + found["prior"],
                     "psnr": metrics.psnr(again, cases.images / 255),
                     "codes": len(tokens.unique())})  # fmt: skip
    return rows


QUESTIONS = {"masks": masks, "search": under_clip, "vectors": vectors, "bound": lowered,
             "drawn": drawn_tokens, "joint": joint}  # fmt: skip


def rounded(value):
    """The same with four digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="+", choices=QUESTIONS)
    torch.set_num_threads(1)
    for name in parser.parse_args().questions:
        answer = rounded(QUESTIONS[name]())
        known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        known[name] = answer
        write_text(RESULTS, json.dumps(known, indent=1, sort_keys=True) + "\n")
        print(name, json.dumps(answer, indent=1), flush=True)


if __name__ == "__main__":
    main()
