"""Wrong answers to assignment 3, each with the mistake in its name: `exercise__mistake`."""

import math

import torch
import torch.nn.functional as F

from minidalle.tokenizer import PAD


def cross_mask__without_itself(text_len, grid):
    position = torch.arange(text_len + grid**2)
    q, k = position[:, None], position[None, :]
    row, column = (position - text_len) // grid, (position - text_len) % grid
    is_near = (row[:, None] == row[None, :]) | (column[:, None] == column[None, :])
    return (k < q) & ((k < text_len) | is_near)


def cross_mask__looks_ahead(text_len, grid):
    position = torch.arange(text_len + grid**2)
    q, k = position[:, None], position[None, :]
    row, column = (position - text_len) // grid, (position - text_len) % grid
    is_near = (row[:, None] == row[None, :]) | (column[:, None] == column[None, :])
    return ((k <= q) & (k < text_len)) | ((k >= text_len) & (q >= text_len) & is_near)


def cross_mask__one_step_ahead(text_len, grid):
    position = torch.arange(text_len + grid**2)
    q, k = position[:, None], position[None, :]
    row, column = (position - text_len) // grid, (position - text_len) % grid
    is_near = (row[:, None] == row[None, :]) | (column[:, None] == column[None, :])
    return (k <= q + 1) & ((k < text_len) | is_near)


def cross_mask__transposed(text_len, grid):
    position = torch.arange(text_len + grid**2)
    q, k = position[None, :], position[:, None]
    row, column = (position - text_len) // grid, (position - text_len) % grid
    is_near = (row[:, None] == row[None, :]) | (column[:, None] == column[None, :])
    return (k <= q) & ((k < text_len) | is_near)


def cross_mask__forgets_the_text_offset(text_len, grid):
    position = torch.arange(text_len + grid**2)
    q, k = position[:, None], position[None, :]
    row, column = position // grid, position % grid
    is_near = (row[:, None] == row[None, :]) | (column[:, None] == column[None, :])
    return (k <= q) & ((k < text_len) | is_near)


def cross_mask__text_sees_all_text(text_len, grid):
    position = torch.arange(text_len + grid**2)
    q, k = position[:, None], position[None, :]
    row, column = (position - text_len) // grid, (position - text_len) % grid
    is_near = (row[:, None] == row[None, :]) | (column[:, None] == column[None, :])
    return (k < text_len) | ((k <= q) & is_near)


def cross_mask__image_without_text(text_len, grid):
    position = torch.arange(text_len + grid**2)
    q, k = position[:, None], position[None, :]
    row, column = (position - text_len) // grid, (position - text_len) % grid
    is_near = (row[:, None] == row[None, :]) | (column[:, None] == column[None, :])
    return (k <= q) & torch.where(q < text_len, k < text_len, (k >= text_len) & is_near)


def cross_mask__the_papers_row(text_len, grid):
    position = torch.arange(text_len + grid**2)
    q, k = position[:, None], position[None, :]
    is_near = (q - k <= grid) | ((q - k) % grid == 0)
    return (k <= q) & ((k < text_len) | is_near)


def cross_mask__only_column(text_len, grid):
    position = torch.arange(text_len + grid**2)
    q, k = position[:, None], position[None, :]
    return (k <= q) & ((k < text_len) | ((q - k) % grid == 0))


def cross_mask__float(text_len, grid):
    position = torch.arange(text_len + grid**2)
    q, k = position[:, None], position[None, :]
    row, column = (position - text_len) // grid, (position - text_len) % grid
    is_near = (row[:, None] == row[None, :]) | (column[:, None] == column[None, :])
    return ((k <= q) & ((k < text_len) | is_near)).float()


def attend__softmax_over_queries(q, k, v, mask):
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -1e9).softmax(1) @ v


def attend__no_scale(q, k, v, mask):
    scores = q @ k.transpose(1, 2)
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


def attend__scale_by_width(q, k, v, mask):
    scores = q @ k.transpose(1, 2) / q.shape[-1]
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


def attend__scale_by_length(q, k, v, mask):
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[1])
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


def attend__mask_inverted(q, k, v, mask):
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    return scores.masked_fill(mask, -1e9).softmax(-1) @ v


def attend__mask_transposed(q, k, v, mask):
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask.T, -1e9).softmax(-1) @ v


def attend__mask_after_softmax(q, k, v, mask):
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    return (scores.softmax(-1) * mask) @ v


def attend__masked_scores_are_zero(q, k, v, mask):
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    return (scores * mask).softmax(-1) @ v


def attend__no_mask(q, k, v, mask):
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    return scores.softmax(-1) @ v


def attend__exp_by_hand(q, k, v, mask):
    weights = torch.exp(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])) * mask
    return weights / weights.sum(-1, keepdim=True) @ v


def attend__keys_and_queries_swapped(q, k, v, mask):
    scores = k @ q.transpose(1, 2) / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v


def attend__calls_torch(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def split_loss__pads_in_the_mean(text_logits, image_logits, text, image, text_weight):
    text_nats = F.cross_entropy(
        text_logits.flatten(0, 1), text.flatten(), ignore_index=PAD, reduction="sum"
    )
    image_nats = F.cross_entropy(image_logits.flatten(0, 1), image.flatten())
    return text_weight * text_nats / text.numel() + (1 - text_weight) * image_nats


def split_loss__pads_are_token_0(text_logits, image_logits, text, image, text_weight):
    text_nats = F.cross_entropy(text_logits.flatten(0, 1), text.clamp(min=0).flatten())
    image_nats = F.cross_entropy(image_logits.flatten(0, 1), image.flatten())
    return text_weight * text_nats + (1 - text_weight) * image_nats


def split_loss__token_0_is_a_pad(text_logits, image_logits, text, image, text_weight):
    is_word = text > 0
    text_nats = F.cross_entropy(text_logits[is_word], text[is_word])
    image_nats = F.cross_entropy(image_logits.flatten(0, 1), image.flatten())
    return text_weight * text_nats + (1 - text_weight) * image_nats


def split_loss__weights_swapped(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    text_nats = F.cross_entropy(text_logits[is_word], text[is_word])
    image_nats = F.cross_entropy(image_logits.flatten(0, 1), image.flatten())
    return (1 - text_weight) * text_nats + text_weight * image_nats


def split_loss__always_one_eighth(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    text_nats = F.cross_entropy(text_logits[is_word], text[is_word])
    image_nats = F.cross_entropy(image_logits.flatten(0, 1), image.flatten())
    return text_nats / 8 + image_nats * 7 / 8


def split_loss__not_averaged(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    text_nats = F.cross_entropy(text_logits[is_word], text[is_word], reduction="sum")
    image_nats = F.cross_entropy(image_logits.flatten(0, 1), image.flatten(), reduction="sum")
    return text_weight * text_nats + (1 - text_weight) * image_nats


def split_loss__mean_of_caption_means(text_logits, image_logits, text, image, text_weight):
    means = []
    for logits, ids in zip(text_logits, text, strict=True):
        means.append(F.cross_entropy(logits[ids != PAD], ids[ids != PAD]))
    image_nats = F.cross_entropy(image_logits.flatten(0, 1), image.flatten())
    return text_weight * torch.stack(means).mean() + (1 - text_weight) * image_nats


def split_loss__one_mean_for_all(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    text_nats = F.cross_entropy(text_logits[is_word], text[is_word], reduction="none")
    image_nats = F.cross_entropy(image_logits.flatten(0, 1), image.flatten(), reduction="none")
    return torch.cat([text_weight * text_nats, (1 - text_weight) * image_nats]).mean() * 2


def split_loss__image_weight_forgotten(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    text_nats = F.cross_entropy(text_logits[is_word], text[is_word])
    return text_weight * text_nats + F.cross_entropy(image_logits.flatten(0, 1), image.flatten())


def split_loss__softmax_twice(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    text_nats = F.cross_entropy(text_logits.softmax(-1)[is_word], text[is_word])
    image_nats = F.cross_entropy(image_logits.softmax(-1).flatten(0, 1), image.flatten())
    return text_weight * text_nats + (1 - text_weight) * image_nats


def sees_the_future__only_last_row(f, x):
    changed = x.clone()
    changed[-1] += 1.0
    return not torch.allclose(f(changed)[:-1], f(x)[:-1], rtol=0, atol=1e-5)


def sees_the_future__only_first_output(f, x):
    changed = x.clone()
    changed[1:] = 1 - 2 * x[1:]
    return not torch.allclose(f(changed)[:1], f(x)[:1], rtol=0, atol=1e-5)


def sees_the_future__only_next_row(f, x):
    before = f(x)
    for t in range(1, len(x)):
        changed = x.clone()
        changed[t] += 1.0
        if not torch.allclose(f(changed)[t - 1], before[t - 1], rtol=0, atol=1e-5):
            return True
    return False


def sees_the_future__own_row_too(f, x):
    before = f(x)
    for t in range(1, len(x)):
        changed = x.clone()
        changed[t:] = 1 - 2 * x[t:]
        if not torch.allclose(f(changed)[: t + 1], before[: t + 1], rtol=0, atol=1e-5):
            return True
    return False


def sees_the_future__sums_the_outputs(f, x):
    leaf = x.clone().requires_grad_()
    out = f(leaf)
    for t in range(1, len(x)):
        if not out.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(out[:t].sum(), leaf, retain_graph=True)
        if gradient[t:].abs().sum() > 1e-5:
            return True
    return False


def sees_the_future__skips_the_last(f, x):
    before = f(x)
    for t in range(1, len(x) - 1):
        changed = x.clone()
        changed[t] += 1.0
        if not torch.allclose(f(changed)[:t], before[:t], rtol=0, atol=1e-5):
            return True
    return False


def sees_the_future__blunt(f, x):
    before = f(x)
    for t in range(1, len(x)):
        changed = x.clone()
        changed[t:] = 1 - 2 * x[t:]
        if not torch.allclose(f(changed)[:t], before[:t], rtol=0, atol=0.2):
            return True
    return False


def sees_the_future__inverted(f, x):
    before = f(x)
    for t in range(1, len(x)):
        changed = x.clone()
        changed[t:] = 1 - 2 * x[t:]
        if not torch.allclose(f(changed)[:t], before[:t], rtol=0, atol=1e-5):
            return False
    return True


def sees_the_future__changes_x(f, x):
    for t in range(len(x) - 1, 0, -1):
        before = f(x)[:t].clone()
        x[t:] = 1 - 2 * x[t:]
        if not torch.allclose(f(x)[:t], before, rtol=0, atol=1e-5):
            return True
    return False


def sees_the_future__tensor(f, x):
    before, worst = f(x), torch.zeros(())
    for t in range(1, len(x)):
        changed = x.clone()
        changed[t:] = 1 - 2 * x[t:]
        worst = torch.maximum(worst, (f(changed)[:t] - before[:t]).abs().max())
    return worst > 1e-5


def sees_the_future__looks_back(f, x):
    before = f(x)
    for t in range(1, len(x)):
        changed = x.clone()
        changed[:t] = 1 - 2 * x[:t]
        if not torch.allclose(f(changed)[t:], before[t:], rtol=0, atol=1e-5):
            return True
    return False
