"""CLIP against the published names, a loop, transformers, and one big batch."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minidalle.clip import (
    CLIP,
    MAX_LOGIT_SCALE,
    QuickGELU,
    contrastive_loss,
    pack_text,
    self_attention,
)
from minidalle.config import CLIPConfig

SMALL = CLIPConfig(
    image_size=16, patch_size=4, vision_width=24, vision_layers=2, vision_heads=3, vocab_size=40,
    context_length=12, text_width=32, text_layers=2, text_heads=4, embed_dim=20,
)  # fmt: skip


def make(config: CLIPConfig = SMALL, seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    return CLIP(config).eval()


def some_batch(n: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    text = torch.randint(38, (n, 10), generator=g)
    length = torch.randint(1, 11, (n, 1), generator=g)
    text[torch.arange(10) >= length] = -1
    return {"images": torch.rand(n, 3, 16, 16, generator=g), "text": text}


def test_vit_b_32_has_the_published_parameters():
    with torch.device("meta"):
        model = CLIP(CLIPConfig())
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    assert sum(math.prod(s) for s in shapes.values()) == 151_277_313
    block = {
        "attn.in_proj_weight": (3, 1), "attn.in_proj_bias": (3,), "attn.out_proj.weight": (1, 1),
        "attn.out_proj.bias": (1,), "ln_1.weight": (1,), "ln_1.bias": (1,), "ln_2.weight": (1,),
        "ln_2.bias": (1,), "mlp.c_fc.weight": (4, 1), "mlp.c_fc.bias": (4,),
        "mlp.c_proj.weight": (1, 4), "mlp.c_proj.bias": (1,),
    }  # fmt: skip
    want = {
        "positional_embedding": (77, 512), "text_projection": (512, 512), "logit_scale": (),
        "visual.class_embedding": (768,), "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512), "visual.conv1.weight": (768, 3, 32, 32),
        "visual.ln_pre.weight": (768,), "visual.ln_pre.bias": (768,),
        "visual.ln_post.weight": (768,), "visual.ln_post.bias": (768,),
        "token_embedding.weight": (49408, 512), "ln_final.weight": (512,), "ln_final.bias": (512,),
    }  # fmt: skip
    for tower, width in (("visual.transformer", 768), ("transformer", 512)):
        for i in range(12):
            for name, factors in block.items():
                want[f"{tower}.resblocks.{i}.{name}"] = tuple(f * width for f in factors)
    assert shapes == want


def test_weights_start_as_published():
    config = CLIPConfig(
        vision_width=64, vision_heads=2, vision_layers=1, text_width=128, text_layers=4
    )
    model = make(config)
    width, depth = model.config.text_width, model.config.text_layers
    block = model.transformer.resblocks[3]
    stds = {
        model.token_embedding.weight: 0.02,
        model.positional_embedding: 0.01,
        model.text_projection: width**-0.5,
        block.attn.in_proj_weight: width**-0.5,
        block.attn.out_proj.weight: width**-0.5 * (2 * depth) ** -0.5,
        block.mlp.c_fc.weight: (2 * width) ** -0.5,
        block.mlp.c_proj.weight: width**-0.5 * (2 * depth) ** -0.5,
        model.visual.positional_embedding: model.config.vision_width**-0.5,
        model.visual.proj: model.config.vision_width**-0.5,
    }
    for weight, std in stds.items():
        assert weight.std().item() == pytest.approx(std, rel=0.06)
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_features_are_unit_vectors_in_float32():
    model, batch = make(), some_batch()
    for features in (
        model.encode_image(batch["images"]),
        model.encode_text(pack_text(batch["text"], SMALL)),
    ):
        assert features.shape == (6, 20) and features.dtype == torch.float32
        assert torch.allclose(features.norm(dim=1), torch.ones(6))


def test_text_is_framed_as_published():
    text = torch.tensor([[5, 6, 7], [9, -1, -1], [0, 5, 0], [-1, -1, -1]])
    config = CLIPConfig(vocab_size=40, context_length=6)
    want = [[38, 5, 6, 7, 39, 0], [38, 9, 39, 0, 0, 0], [38, 0, 5, 0, 39, 0], [38, 39, 0, 0, 0, 0]]
    assert pack_text(text, config).tolist() == want


def test_images_are_normalised_by_the_published_numbers():
    model, seen = make(), []
    model.visual.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    images = some_batch()["images"]
    model.encode_image(images)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    torch.testing.assert_close(seen[0], (images - mean) / std)


def test_the_feature_of_an_image_is_read_at_the_class_token():
    model = make(replace(SMALL, vision_layers=0))  # no state sees another
    features = model.encode_image(some_batch()["images"])
    v = model.visual
    state = v.ln_post(v.ln_pre(v.class_embedding + v.positional_embedding[0]))
    torch.testing.assert_close(features, F.normalize(state @ v.proj, dim=0).expand(6, -1))


def test_the_released_models_gelu_is_its_formula():
    for x in (-3.0, -0.5, 0.0, 0.7, 2.0):
        want = x / (1 + math.exp(-1.702 * x))
        assert QuickGELU()(torch.tensor(x)).item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_in_bfloat16_is_that_of_float32(causal):
    q, k, v = torch.randn(3, 2, 3, 7, 8, generator=torch.Generator().manual_seed(0))
    want = self_attention(q, k, v, causal)
    got = self_attention(*(x.bfloat16() for x in (q, k, v)), causal)
    torch.testing.assert_close(got.float(), want, atol=0.05, rtol=0.05)


def test_what_follows_end_of_text_is_not_seen():
    model = make()
    ids = pack_text(torch.tensor([[5, 6, -1], [5, 6, 7]]), SMALL)
    alone = model.encode_text(ids[:1])
    assert torch.allclose(model.encode_text(ids)[:1], alone, atol=1e-6)
    ids[0, 4:] = 17
    assert torch.allclose(model.encode_text(ids)[:1], alone, atol=1e-6)


def test_order_of_words_and_place_of_pixels_matter():
    model, batch = make(), some_batch()
    ids = pack_text(torch.tensor([[5, 6, 7], [7, 6, 5]]), SMALL)
    there, back = model.encode_text(ids)
    assert (there - back).abs().max() > 1e-4
    turned = model.encode_image(batch["images"].flip(-1))
    assert (model.encode_image(batch["images"]) - turned).abs().max() > 1e-4


def test_the_loss_is_two_cross_entropies_by_loops():
    model, batch = make(), some_batch(4)
    loss, metrics = model.loss(batch, 0)
    image = model.encode_image(batch["images"]).tolist()
    text = model.encode_text(pack_text(batch["text"], SMALL)).tolist()
    scale = math.exp(model.logit_scale.item())
    logits = [[scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in text] for i in image]
    total = right = 0.0
    for k in range(4):
        row, column = logits[k], [logits[j][k] for j in range(4)]
        for line in (row, column):
            total += math.log(sum(map(math.exp, line))) - line[k]
        right += row[k] == max(row)
    assert loss.item() == pytest.approx(total / 8, rel=1e-5)
    assert float(metrics["image_to_text"]) == right / 4


def test_processes_together_have_the_gradients_of_one_big_batch():
    model, batch = make(), some_batch(6)
    model.loss(batch, 0)[0].backward()
    want = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    # Three processes of two rows each, played one after another. What each gathers hangs on one
    # graph, so gradients add up over processes as the backward pass of an all-gather adds them.
    image = model.encode_image(batch["images"])
    text = model.encode_text(pack_text(batch["text"], SMALL))
    losses = []
    for rank in range(3):
        rows = slice(2 * rank, 2 * rank + 2)
        gathered = iter((image, text))

        def gather(features, rank=rank, gathered=gathered):
            return next(gathered), 2 * rank

        losses.append(contrastive_loss(image[rows], text[rows], model.logit_scale, gather)[0])
    (sum(losses) / 3).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, want[name], rtol=1e-4, atol=1e-5), name


def test_the_temperature_is_clamped_after_an_update():
    model = make()
    model.logit_scale.data.fill_(9.0)
    model.after_update()
    assert model.logit_scale.item() == pytest.approx(math.log(100))
    model.logit_scale.data.fill_(1.0)
    model.after_update()
    assert model.logit_scale.item() == 1.0
    assert math.log(100) == MAX_LOGIT_SCALE


class Letters:
    """Every letter is a token."""

    def encode_batch(self, texts: list[str], length: int) -> torch.Tensor:
        rows = [[ord(c) % 38 for c in text][:length] for text in texts]
        return torch.tensor([row + [-1] * (length - len(row)) for row in rows])


def test_a_score_is_the_cosine_of_caption_and_image_in_any_batches():
    model, images = make(), some_batch(300)["images"]
    model.tokenizer = Letters()
    words = [f"{i:x} and more than fits"[: 1 + i % 20] for i in range(300)]  # 10 letters fit
    with torch.no_grad():
        ids = [pack_text(Letters().encode_batch([word], 10), SMALL) for word in words]
        text = torch.cat([model.encode_text(row) for row in ids])
        want = (model.encode_image(images) * text).sum(1)
        alone = model.encode_image(images) @ text[3]
    torch.testing.assert_close(model.score(words, images, batch_size=7), want)
    torch.testing.assert_close(model.score(words, images), want)
    torch.testing.assert_close(model.score(words[3:4], images), alone)


def test_images_of_another_size_are_resampled():
    model = make()
    flat = torch.full((1, 3, 40, 40), 0.3)
    same = model.encode_image(flat[..., :16, :16])
    assert torch.allclose(model.encode_image(flat), same, atol=1e-5)


def test_logits_keep_32_bits_under_autocast():
    image = F.normalize(torch.randn(8, 16), dim=-1)
    text = F.normalize(image + 0.1 * torch.randn(8, 16), dim=-1)
    scale = torch.tensor(MAX_LOGIT_SCALE)
    want = contrastive_loss(image, text, scale)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_loss(image, text, scale)[0], want)


def test_a_few_updates_learn_pairs_by_heart():
    model, batch = make().train(), some_batch(6)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(40):
        loss, metrics = model.loss(batch, step)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_update()
    assert loss < 0.1
    assert metrics["image_to_text"] == metrics["text_to_image"] == 1


def test_equals_transformers_on_random_weights():
    transformers = pytest.importorskip("transformers")
    text = dict(
        vocab_size=40, hidden_size=32, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=12, projection_dim=20, bos_token_id=38,
        eos_token_id=39,
    )  # fmt: skip
    vision = dict(
        hidden_size=24, intermediate_size=96, num_hidden_layers=2, num_attention_heads=3,
        image_size=16, patch_size=4, projection_dim=20,
    )  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    theirs, ours, batch = transformers.CLIPModel(config).eval(), make(), some_batch()
    theirs.load_state_dict(_as_transformers(ours), strict=False)
    ids = pack_text(batch["text"], SMALL)
    pixels = (batch["images"] - ours.mean) / ours.std
    with torch.no_grad():
        out = theirs(input_ids=ids, pixel_values=pixels)
        scale = ours.logit_scale.exp()
        logits = scale * ours.encode_image(batch["images"]) @ ours.encode_text(ids).T
    assert torch.allclose(out.logits_per_image, logits, atol=1e-4)


def _as_transformers(model: CLIP) -> dict[str, torch.Tensor]:
    """Our weights under transformers' names."""
    ours, theirs = model.state_dict(), {}
    renamed = {
        "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
        "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    }  # fmt: skip
    for prefix, tower in (("visual.transformer", "vision_model"), ("transformer", "text_model")):
        for i in range(2):
            old, new = f"{prefix}.resblocks.{i}.", f"{tower}.encoder.layers.{i}."
            for kind in ("weight", "bias"):
                parts = ours[f"{old}attn.in_proj_{kind}"].chunk(3)
                for name, part in zip("qkv", parts, strict=True):
                    theirs[f"{new}self_attn.{name}_proj.{kind}"] = part
                for a, b in renamed.items():
                    theirs[f"{new}{b}.{kind}"] = ours[f"{old}{a}.{kind}"]
    vision, text = "vision_model.", "text_model."
    norms = {
        "visual.ln_pre": vision + "pre_layrnorm", "visual.ln_post": vision + "post_layernorm",
        "ln_final": text + "final_layer_norm",
    }  # fmt: skip
    for a, b in norms.items():
        theirs |= {f"{b}.{kind}": ours[f"{a}.{kind}"] for kind in ("weight", "bias")}
    return theirs | {
        vision + "embeddings.class_embedding": ours["visual.class_embedding"],
        vision + "embeddings.position_embedding.weight": ours["visual.positional_embedding"],
        vision + "embeddings.patch_embedding.weight": ours["visual.conv1.weight"],
        text + "embeddings.token_embedding.weight": ours["token_embedding.weight"],
        text + "embeddings.position_embedding.weight": ours["positional_embedding"],
        "visual_projection.weight": ours["visual.proj"].T,
        "text_projection.weight": ours["text_projection"].T,
        "logit_scale": ours["logit_scale"],
    }


def test_images_that_are_no_squares_of_three_channels_are_refused():
    clip = make()
    for shape in ((2, 3, 16, 32), (2, 3, 32, 16), (2, 1, 32, 32), (3, 32, 32)):
        with pytest.raises(ValueError, match="images must be"):
            clip.encode_image(torch.zeros(shape))
