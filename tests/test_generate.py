"""Cached against plain decoding at every step, draws against frequencies, and the pipeline."""

import io
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from helpers.tiny_prior import SMALL, Counted, captions, seeded, shake
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from minidalle import cache as cache_module
from minidalle import dalle as dalle_module
from minidalle import generate as generate_module
from minidalle.attention import layer_mask
from minidalle.attention.compiled import Graph
from minidalle.cache import LayerCache, layout
from minidalle.clip import CLIP, pack_text
from minidalle.config import get_config, to_json
from minidalle.dalle import DALLE
from minidalle.dvae import DiscreteVAE
from minidalle.files import save_model
from minidalle.generate import Pipeline, draw, guide, restrict, sample
from minidalle.tokenizer import PAD, BPETokenizer


@pytest.fixture(autouse=True)
def fixed():
    torch.manual_seed(0)


def make(config=SMALL, **changes) -> DALLE:
    return shake(DALLE(replace(config, **changes))).eval()


# ---------------------------------------------------------------- the cache


@pytest.mark.parametrize("kernel, n_layers", [(3, 5), (5, 1), (1, 2), (7, 6)])
@pytest.mark.parametrize("start", [0, 1, 6, 15, 16])
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_at_every_step(kernel, n_layers, start):
    model = make(kernel=kernel, n_layers=n_layers)
    text, image = captions([1, 2, 3], []), torch.randint(12, (6, 16))  # 3 images a caption
    _, want = model(text.repeat_interleave(3, 0), image)
    decoder = model.decoder(text, 3, image.view(2, 3, 16)[:, :, :start])
    for cell in range(start, 16):
        got = decoder.step(image[:, cell - 1] if cell else None)
        torch.testing.assert_close(got, want[:, cell], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["row", "column", "conv"])
@pytest.mark.parametrize("grid, kernel", [(4, 3), (5, 5), (3, 7), (1, 1), (6, 1)])
def test_a_layers_cache_reaches_what_its_mask_shows(kind, grid, kernel):
    mask = layer_mask(kind, 1, grid, kernel)[1:, 1:]
    places = layout(kind, grid, kernel, torch.device("cpu"))
    assert len(places.slot) == len(places.hidden) == grid**2
    cache = LayerCache(kind, grid, places, *torch.zeros(2, 1, 1, 1, 1), samples=1)
    cache.k.fill_(-1)
    for cell in range(grid**2):
        slot, hidden = cache.layout.at(torch.tensor([cell]))
        cache.k[:, :, :, slot] = cell  # every slot says whose it is
        slots = cache.read(cache.k, slot).flatten()
        assert slots[~hidden[0]].sort().values.tolist() == mask[cell].nonzero()[:, 0].tolist()


class Recording(TorchDispatchMode):
    """What a CUDA graph does, on the CPU: the same operations on the same memory, again and again.

    Python runs once. What it read from a tensor, or a tensor that it replaced, stays as it was.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for a value"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(out)))
        return out

    def replay(self):
        for func, args, kwargs, homes in self.calls:
            for home, value in zip(homes, tree_leaves(func(*args, **kwargs)), strict=True):
                if home.untyped_storage().data_ptr() != value.untyped_storage().data_ptr():
                    home.copy_(value)  # neither a view nor done in place


@pytest.mark.parametrize("start", [0, 5])
@torch.no_grad()
def test_a_step_recorded_once_predicts_every_cell(start, monkeypatch):
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
    monkeypatch.setattr(torch.cuda, "graph", lambda recording, **_: recording)
    model = make()
    image = torch.randint(12, (3, 16))
    _, want = model(captions([1, 2, 3]).expand(3, -1), image)
    decoder = model.decoder(captions([1, 2, 3]), 3, image[None, :, :start])
    first = image[:, start - 1] if start else torch.zeros(3, dtype=torch.long)
    decoder.graph = Graph(decoder._predict, first)
    got = [decoder.step(image[:, cell - 1] if cell else None) for cell in range(start, 16)]
    torch.testing.assert_close(torch.stack(got, 1), want[:, start:], atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile", [False, True])
@torch.no_grad()
def test_a_gpu_replays_what_the_cpu_predicts(compile):
    model, image = make(), torch.randint(12, (3, 16))
    _, want = model(captions([1, 2, 3]).expand(3, -1), image)
    text, image = captions([1, 2, 3]).cuda(), image.cuda()
    decoder = model.cuda().decoder(text, 3, image[None, :, :5], compile=compile)
    got = [decoder.step(image[:, cell - 1]) for cell in range(5, 16)]
    assert isinstance(decoder.graph, Graph)
    torch.testing.assert_close(torch.stack(got, 1).cpu(), want[:, 5:], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_compiled_step_is_compiled_once_for_all_cells(monkeypatch):
    """No graph breaks, and none anew for another cell or for another layer of the same kind."""
    torch._dynamo.reset()
    options = dict(dynamic=False, fullgraph=True, backend=Counted())
    compiled = torch.compile(cache_module.step_layer, **options)
    monkeypatch.setattr(dalle_module, "compile_step", lambda step: compiled)
    model = make()
    draws = [sample(model, [1, 2], 3, generator=seeded(), compile=c) for c in (False, True)]
    assert torch.equal(*draws)
    assert len(options["backend"].graphs) == 3  # row, column, conv


def test_a_row_layer_keeps_33_image_states_at_the_size_of_the_paper():
    config = get_config("12b").dalle
    kinds, cpu = ("row", "column", "conv"), torch.device("cpu")
    slots = {kind: layout(kind, config.grid, config.kernel, cpu).slots for kind in kinds}
    assert slots == {"row": 33, "column": 1024, "conv": 192}


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("p", [0, 1, 7, 16])
@pytest.mark.parametrize("many_captions", [False, True])
@pytest.mark.parametrize("many_prompts", [False, True])
def test_samples_do_not_depend_on_the_cache(guidance, p, many_captions, many_prompts):
    model = make()
    text = captions([1, 2], [3], [4, 5, 6], []) if many_captions else [1, 2]
    prompt = torch.randint(12, (4, p) if many_prompts else (p,))
    draws = [
        sample(model, text, 4, guidance=guidance, prompt=prompt, generator=seeded(), use_cache=use)
        for use in (True, False)
    ]
    assert torch.equal(*draws)
    assert draws[0].shape == (4, 4, 4)
    assert torch.equal(draws[0].flatten(1)[:, :p], prompt.expand(4, p))


@torch.no_grad()
def test_guided_logits_are_u_plus_s_times_c_minus_u_at_every_step(monkeypatch):
    model, steps = make(), []
    monkeypatch.setattr(
        generate_module, "guide", lambda *args: steps.append(guide(*args)) or steps[-1]
    )
    image = sample(model, [1, 2], 3, guidance=2.5, generator=seeded()).flatten(1)
    c = model(captions([1, 2]).expand(3, -1), image)[1]
    u = model(captions([]).expand(3, -1), image)[1]
    torch.testing.assert_close(torch.stack(steps, 1), u + 2.5 * (c - u), atol=1e-5, rtol=1e-5)


def test_guidance_changes_the_image_and_zero_forgets_the_caption():
    model = make()
    with torch.no_grad():
        model.text_embedding.weight.mul_(20)
    draws = [
        sample(model, ids, 4, guidance=s, generator=seeded())
        for ids, s in (([1, 2], 0.0), ([5, 7], 0.0), ([1, 2], 1.0), ([1, 2], 3.0))
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2]) and not torch.equal(draws[2], draws[3])


# ---------------------------------------------------------------- sampling


def test_samples_are_the_same_for_any_split_into_batches():
    model = make()
    whole = sample(model, [1, 2, 3], 8, generator=seeded())
    generator = seeded()
    parts = [sample(model, [1, 2, 3], n, generator=generator) for n in (4, 1, 3)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, sample(model, [1, 2, 3], 8, generator=seeded(1)))


def test_samples_without_a_generator_follow_torchs_own():
    model = make()
    torch.manual_seed(5)
    first = sample(model, [1], 2)
    torch.manual_seed(5)
    assert torch.equal(sample(model, [1], 2), first)


def test_one_caption_equals_the_same_caption_for_every_image():
    model = make()
    one = sample(model, [1, 2], 4, generator=seeded())
    many = sample(model, captions([1, 2]).repeat(4, 1), 4, generator=seeded())
    assert torch.equal(one, many)


def test_samples_follow_the_likelihood():
    model = make(text_vocab=2, text_len=2, image_vocab=2, grid=2, n_layers=2)
    with torch.no_grad():
        model.image_head.weight.mul_(5)
    cells = torch.cartesian_prod(*[torch.arange(2)] * 4)  # all 16 images
    _, ln_p = model.log_likelihood(torch.tensor([[1]]).expand(16, -1), cells)
    drawn = sample(model, [1], 20_000, generator=seeded()).flatten(1)
    code = (drawn * torch.tensor([8, 4, 2, 1])).sum(1)
    share = code.bincount(minlength=16) / 20_000
    assert (share - ln_p.exp()).abs().max() < 0.015
    assert ln_p.exp().max() > 0.12  # far from uniform


def test_temperature_zero_takes_the_likeliest_token():
    model = make()
    image = sample(model, [1], 2, temperature=0, generator=seeded(3)).flatten(1)
    _, logits = model(captions([1]).expand(2, -1), image)
    assert torch.equal(logits.argmax(-1), image)


def test_draw_has_the_frequencies_of_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, float("-inf"), 2.0])
    tokens = draw(logits.expand(50_000, -1), torch.rand(50_000, generator=seeded()), 2.0)
    share = tokens.bincount(minlength=5) / 50_000
    torch.testing.assert_close(share, (logits / 2).softmax(0), atol=0.01, rtol=0)
    assert share[3] == 0


def test_draw_never_takes_a_forbidden_token_at_the_ends_of_the_interval():
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]]).expand(2, -1)
    almost_one = 1 - 2.0**-24
    assert draw(logits, torch.tensor([0.0, almost_one])).tolist() == [1, 2]


def test_top_k_keeps_the_k_likeliest():
    logits = torch.randn(6, 12)
    kept = restrict(logits, top_k=4).isfinite()
    assert torch.equal(kept.sum(1), torch.full((6,), 4))
    assert (logits.masked_fill(~kept, 99).amin(1) > logits.masked_fill(kept, -99).amax(1)).all()
    assert torch.equal(restrict(logits, top_k=50), logits)


def test_top_p_keeps_the_fewest_tokens_that_reach_p():
    p = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.97, 0.01, 0.01, 0.01]])
    kept = {q: restrict(p.log(), top_p=q).isfinite().int().tolist() for q in (0.39, 0.65, 0.85, 1)}
    assert kept == {
        0.39: [[0, 1, 0, 0], [1, 0, 0, 0]],
        0.65: [[0, 1, 0, 1], [1, 0, 0, 0]],
        0.85: [[0, 1, 1, 1], [1, 0, 0, 0]],
        1: [[1, 1, 1, 1], [1, 1, 1, 1]],
    }


def test_a_top_p_of_1_keeps_even_what_rounding_would_lose():
    logits = torch.tensor([[0.0, -40.0]])
    assert torch.equal(restrict(logits, top_p=1.0), logits)


@pytest.mark.parametrize(
    "option, message",
    [
        (dict(n=0), "n must be 1 or more, got 0"),
        (dict(temperature=-0.1), "temperature must be 0 or more, got -0.1"),
        (dict(temperature=float("nan")), "temperature must be 0 or more, got nan"),
        (dict(top_k=0), "top_k must be 1 or more, got 0"),
        (dict(top_p=0.0), r"top_p must be in \(0, 1\], got 0.0"),
        (dict(top_p=1.01), r"top_p must be in \(0, 1\], got 1.01"),
        (dict(guidance=float("inf")), "guidance must be a finite number, got inf"),
        (
            dict(prompt=torch.zeros(17, dtype=torch.long)),
            r"prompt must be \(p,\) or \(2, p <= 16\)",
        ),
        (dict(prompt=torch.zeros(3, 1, dtype=torch.long)), r"got \(3, 1\)"),
        (dict(prompt=torch.zeros(1, 1, 1, dtype=torch.long)), r"got \(1, 1, 1\)"),
        (dict(prompt=torch.tensor([12])), "prompt ids must be below 12"),
        (dict(prompt=torch.tensor([0.0])), "prompt ids must be integers"),
        (dict(text=[1, 2, 3, 4, 5, 6]), "one caption of up to 5 ids"),
        (dict(text=[20]), "text ids must be below 20"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(option, message):
    with pytest.raises(ValueError, match=message):
        sample(make(), **{"text": [1], "n": 2, **option})


def test_the_ends_of_the_options_are_taken():
    model = make()
    want = sample(model, [1], 20, generator=seeded())
    for option in (dict(top_p=1.0), dict(top_k=12), dict(temperature=1), dict(guidance=1.0)):
        assert torch.equal(sample(model, [1], 20, generator=seeded(), **option), want)
    likeliest = sample(model, [1], 20, temperature=0)
    for option in (dict(top_p=1e-9), dict(top_k=1)):
        assert torch.equal(sample(model, [1], 20, generator=seeded(), **option), likeliest)
    assert sample(model, [1], 20, prompt=torch.zeros(20, 16, dtype=torch.long)).sum() == 0


# ---------------------------------------------------------------- the pipeline


TINY = get_config(
    "toy",
    [
        "dalle.n_layers=1", "dalle.n_heads=1", "dvae.n_hid=4", "dvae.n_init=4",
        "clip.vision_width=8", "clip.vision_heads=1", "clip.vision_layers=1",
        "clip.text_width=8", "clip.text_heads=1", "clip.text_layers=1", "clip.embed_dim=4",
    ],
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "toy"
    models = {"dvae": DiscreteVAE(TINY.dvae), "dalle": make(TINY.dalle), "clip": CLIP(TINY.clip)}
    for stage, model in models.items():
        save_model(folder / stage, model.state_dict(), to_json(TINY))
    (folder / "tokenizer").mkdir()
    BPETokenizer.train(["a red circle"], 260).save(folder / "tokenizer" / "tokenizer.json")
    return folder


def test_pipeline_returns_the_images_that_clip_likes_best(run):
    pipeline = Pipeline.load(run)
    images, scores = pipeline.generate("a red circle", 3, 7, generator=seeded(), batch_size=4)
    assert images.shape == (3, 3, 32, 32) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1
    ids = pipeline.tokenizer.encode_batch(["a red circle"], pipeline.prior.caption_len)
    tokens = sample(pipeline.prior, ids[0].tolist()[: len(ids[ids != PAD])], 7, generator=seeded())
    with torch.no_grad():
        drawn = pipeline.codebook.decode(tokens)
        text = pipeline.reranker.encode_text(pack_text(ids, TINY.clip))
        cosine = (pipeline.reranker.encode_image(drawn) @ text.T)[:, 0]
    best = cosine.argsort(descending=True)[:3]
    torch.testing.assert_close(scores, cosine[best])
    torch.testing.assert_close(images, drawn[best])


def test_the_bar_is_full_when_all_images_are_drawn(run, monkeypatch):
    bars = []

    def shown(*args, **options):
        bars.append(tqdm(*args, **options | {"disable": False, "file": io.StringIO()}))
        return bars[-1]

    monkeypatch.setattr(generate_module, "tqdm", shown)
    Pipeline.load(run).generate("red", 2, candidates=5, batch_size=2)
    assert [(bar.n, bar.total) for bar in bars if bar.desc.startswith("images")] == [(5, 5)]


def test_pipeline_draws_with_a_prior_in_bfloat16(run):
    images, _ = Pipeline.load(run, dtype=torch.bfloat16).generate("red", 2, generator=seeded())
    assert images.shape == (2, 3, 32, 32) and images.isfinite().all()


def test_pipeline_without_a_clip_draws_but_cannot_choose(run):
    (run / "clip" / "model.safetensors").unlink()
    pipeline = Pipeline.load(run)
    images, scores = pipeline.generate("red", 2, generator=seeded())
    assert images.shape == (2, 3, 32, 32) and scores.isnan().all()
    with pytest.raises(ValueError, match="5 candidates for n=2 images: a trained clip"):
        pipeline.generate("red", 2, candidates=5)


@pytest.mark.parametrize("stage", ["tokenizer", "dvae", "dalle"])
def test_pipeline_names_the_stage_that_is_missing_and_how_to_train_it(run, stage):
    name = "tokenizer.json" if stage == "tokenizer" else "model.safetensors"
    (run / stage / name).unlink()
    with pytest.raises(ValueError, match=f"no trained {stage}.*minidalle {stage} --preset toy"):
        Pipeline.load(run)


def test_pipeline_refuses_captions_it_cannot_read(run):
    pipeline = Pipeline.load(run)
    with pytest.raises(ValueError, match="caption is empty: '  '"):
        pipeline.generate("  ")
    with pytest.raises(ValueError, match="40 tokens, at most 24"):
        pipeline.generate("#" * 40)
    with pytest.raises(ValueError, match="n must be 1 or more, got 0"):
        pipeline.generate("red", 0)
    with pytest.raises(ValueError, match="1 candidates for n=2 images: fewer"):
        pipeline.generate("red", 2, candidates=1)


def test_pipeline_keeps_what_it_has_when_interrupted(run, monkeypatch):
    pipeline, calls = Pipeline.load(run), []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(*args, **options)

    monkeypatch.setattr(generate_module, "sample", interrupted)
    images, scores = pipeline.generate("red", 9, batch_size=2)
    assert len(images) == len(scores) == 4
    calls[:] = [1, 1]
    with pytest.raises(KeyboardInterrupt):  # nothing to keep
        pipeline.generate("red", 9, batch_size=2)
