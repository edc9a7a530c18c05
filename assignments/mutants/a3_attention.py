"""Wrong answers to assignment 3, each with the mistake in its name: `exercise__mistake`."""

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


def join_parts__plain_mean(outputs, log_sums):
    return outputs.mean(0)


def join_parts__sum_of_the_outputs(outputs, log_sums):
    return outputs.sum(0)


def join_parts__exp_by_hand(outputs, log_sums):
    weights = log_sums.exp()
    return (weights[..., None] * outputs).sum(0) / weights.sum(0)[..., None]


def join_parts__one_maximum_for_all(outputs, log_sums):
    weights = (log_sums - log_sums.max()).exp()
    return (weights[..., None] * outputs).sum(0) / weights.sum(0)[..., None]


def join_parts__not_divided(outputs, log_sums):
    weights = (log_sums - log_sums.amax(0)).exp()
    return (weights[..., None] * outputs).sum(0)


def join_parts__logarithms_as_weights(outputs, log_sums):
    weights = log_sums / log_sums.sum(0)
    return (weights[..., None] * outputs).sum(0)


def join_parts__softmax_over_queries(outputs, log_sums):
    return (log_sums.softmax(-1)[..., None] * outputs).sum(0)


def join_parts__softmax_over_the_batch(outputs, log_sums):
    return (log_sums.softmax(1)[..., None] * outputs).sum(0)


def join_parts__largest_part_only(outputs, log_sums):
    best = F.one_hot(log_sums.argmax(0), len(outputs)).movedim(-1, 0)  # (P, B, T)
    return (best[..., None] * outputs).sum(0)


def join_parts__wrong_way_round(outputs, log_sums):
    return ((-log_sums).softmax(0)[..., None] * outputs).sum(0)


def join_parts__unseen_part_counts(outputs, log_sums):
    weights = log_sums.nan_to_num(neginf=0.0).softmax(0)
    return (weights[..., None] * outputs).sum(0)


def join_parts__total_not_updated(outputs, log_sums):
    seen, total = outputs[0], log_sums[0]
    for output, log_sum in zip(outputs[1:], log_sums[1:], strict=True):
        share = torch.sigmoid(log_sum - total)[..., None].nan_to_num()
        seen = seen + share * (output - seen)
        total = torch.maximum(total, log_sum)
    return seen


def join_parts__arguments_changed(outputs, log_sums):
    outputs *= log_sums.softmax(0)[..., None]
    return outputs.sum(0)


def loss_gradients__pads_in_the_mean(text_logits, image_logits, text, image, text_weight):
    words = text_logits.softmax(-1) - F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    cells = image_logits.softmax(-1) - F.one_hot(image, image_logits.shape[-1])
    words = words * (text != PAD)[..., None]
    return text_weight * words / text.numel(), (1 - text_weight) * cells / image.numel()


def loss_gradients__pads_are_token_0(text_logits, image_logits, text, image, text_weight):
    words = text_logits.softmax(-1) - F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    cells = image_logits.softmax(-1) - F.one_hot(image, image_logits.shape[-1])
    return text_weight * words / text.numel(), (1 - text_weight) * cells / image.numel()


def loss_gradients__pads_pull(text_logits, image_logits, text, image, text_weight):
    words = text_logits.softmax(-1) - F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    cells = image_logits.softmax(-1) - F.one_hot(image, image_logits.shape[-1])
    n = (text != PAD).sum()
    return text_weight * words / n, (1 - text_weight) * cells / image.numel()


def loss_gradients__token_0_is_a_pad(text_logits, image_logits, text, image, text_weight):
    is_word = text > 0
    words = text_logits.softmax(-1) - F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    cells = image_logits.softmax(-1) - F.one_hot(image, image_logits.shape[-1])
    words = words * is_word[..., None]
    return text_weight * words / is_word.sum(), (1 - text_weight) * cells / image.numel()


def loss_gradients__weights_swapped(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    words = text_logits.softmax(-1) - F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    cells = image_logits.softmax(-1) - F.one_hot(image, image_logits.shape[-1])
    words = words * is_word[..., None]
    return (1 - text_weight) * words / is_word.sum(), text_weight * cells / image.numel()


def loss_gradients__always_one_eighth(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    words = text_logits.softmax(-1) - F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    cells = image_logits.softmax(-1) - F.one_hot(image, image_logits.shape[-1])
    words = words * is_word[..., None]
    return words / is_word.sum() / 8, cells / image.numel() * 7 / 8


def loss_gradients__not_averaged(text_logits, image_logits, text, image, text_weight):
    words = text_logits.softmax(-1) - F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    cells = image_logits.softmax(-1) - F.one_hot(image, image_logits.shape[-1])
    return text_weight * words * (text != PAD)[..., None], (1 - text_weight) * cells


def loss_gradients__mean_of_caption_means(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    words = text_logits.softmax(-1) - F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    cells = image_logits.softmax(-1) - F.one_hot(image, image_logits.shape[-1])
    words = words * is_word[..., None] / is_word.sum(1)[:, None, None] / len(text)
    return text_weight * words, (1 - text_weight) * cells / image.numel()


def loss_gradients__one_mean_for_all(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    words = text_logits.softmax(-1) - F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    cells = image_logits.softmax(-1) - F.one_hot(image, image_logits.shape[-1])
    n = is_word.sum() + image.numel()
    return text_weight * words * is_word[..., None] / n, (1 - text_weight) * cells / n


def loss_gradients__wrong_sign(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    words = F.one_hot(text.clamp(min=0), text_logits.shape[-1]) - text_logits.softmax(-1)
    cells = F.one_hot(image, image_logits.shape[-1]) - image_logits.softmax(-1)
    words = words * is_word[..., None]
    return text_weight * words / is_word.sum(), (1 - text_weight) * cells / image.numel()


def loss_gradients__softmax_over_positions(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    words = text_logits.softmax(1) - F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    cells = image_logits.softmax(1) - F.one_hot(image, image_logits.shape[-1])
    words = words * is_word[..., None]
    return text_weight * words / is_word.sum(), (1 - text_weight) * cells / image.numel()


def loss_gradients__right_answer_only(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    own = F.one_hot(text.clamp(min=0), text_logits.shape[-1])
    words = own * (text_logits.softmax(-1) - 1) * is_word[..., None]
    own = F.one_hot(image, image_logits.shape[-1])
    cells = own * (image_logits.softmax(-1) - 1)
    return text_weight * words / is_word.sum(), (1 - text_weight) * cells / image.numel()


def loss_gradients__exp_by_hand(text_logits, image_logits, text, image, text_weight):
    is_word = text != PAD
    p, q = text_logits.exp(), image_logits.exp()
    words = p / p.sum(-1, keepdim=True) - F.one_hot(text.clamp(min=0), p.shape[-1])
    cells = q / q.sum(-1, keepdim=True) - F.one_hot(image, q.shape[-1])
    words = words * is_word[..., None]
    return text_weight * words / is_word.sum(), (1 - text_weight) * cells / image.numel()


def loss_gradients__calls_autograd(text_logits, image_logits, text, image, text_weight):
    a, b = text_logits.clone().requires_grad_(), image_logits.clone().requires_grad_()
    text_nats = F.cross_entropy(a[text != PAD], text[text != PAD])
    image_nats = F.cross_entropy(b.flatten(0, 1), image.flatten())
    return torch.autograd.grad(text_weight * text_nats + (1 - text_weight) * image_nats, (a, b))


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
