"""Wrong answers to assignment 7, each with the mistake in its name: `exercise__mistake`."""

import torch
import torch.nn.functional as F


def nearest__length_of_the_codes_forgotten(z, codes):
    return (z @ codes.T).argmax(-1)


def nearest__the_farthest(z, codes):
    return (codes.square().sum(-1) - 2 * z @ codes.T).argmax(-1)


def nearest__by_angle(z, codes):
    return (F.normalize(z, dim=-1) @ F.normalize(codes, dim=-1).T).argmax(-1)


def nearest__sum_of_absolute_differences(z, codes):
    return (z[..., None, :] - codes).abs().sum(-1).argmin(-1)


def nearest__product_not_doubled(z, codes):
    return (codes.square().sum(-1) - z @ codes.T).argmin(-1)


def nearest__highest_number_of_equals(z, codes):
    distance = (z[..., None, :] - codes).square().sum(-1)
    return len(codes) - 1 - distance.flip(-1).argmin(-1)


def nearest__axes_lost(z, codes):
    return torch.cdist(z.reshape(-1, z.shape[-1]), codes).argmin(-1)


def nearest__only_two_axes(z, codes):
    return torch.stack([nearest__product_not_doubled(2 * row, codes) for row in z])


def nearest__the_code_itself(z, codes):
    return codes[(codes.square().sum(-1) - 2 * z @ codes.T).argmin(-1)]


def nearest__one_hot(z, codes):
    tokens = (codes.square().sum(-1) - 2 * z @ codes.T).argmin(-1)
    return F.one_hot(tokens, len(codes))


def nearest__small_integers(z, codes):
    return (codes.square().sum(-1) - 2 * z @ codes.T).argmin(-1).int()


def nearest__over_the_features(z, codes):
    return (codes.square().sum(-1) - 2 * z @ codes.T).argmin(0)


def quantise__no_gradient_to_z(z, tokens, codes, beta):
    e = codes[tokens]
    loss = F.mse_loss(e, z.detach()) + beta * F.mse_loss(z, e.detach())
    return e.detach(), loss


def quantise__gradient_to_the_codes(z, tokens, codes, beta):
    e = codes[tokens]
    loss = F.mse_loss(e, z.detach()) + beta * F.mse_loss(z, e.detach())
    return e, loss


def quantise__gradient_to_both(z, tokens, codes, beta):
    e = codes[tokens]
    loss = F.mse_loss(e, z.detach()) + beta * F.mse_loss(z, e.detach())
    return e + z - z.detach(), loss


def quantise__reads_the_features(z, tokens, codes, beta):
    e = codes[tokens]
    loss = F.mse_loss(e, z.detach()) + beta * F.mse_loss(z, e.detach())
    return z, loss


def quantise__beta_on_the_codes(z, tokens, codes, beta):
    e = codes[tokens]
    loss = beta * F.mse_loss(e, z.detach()) + F.mse_loss(z, e.detach())
    return z + (e - z).detach(), loss


def quantise__both_terms_move_both(z, tokens, codes, beta):
    e = codes[tokens]
    return z + (e - z).detach(), (1 + beta) * F.mse_loss(e, z)


def quantise__only_commitment(z, tokens, codes, beta):
    e = codes[tokens]
    return z + (e - z).detach(), beta * F.mse_loss(z, e.detach())


def quantise__only_the_codes(z, tokens, codes, beta):
    e = codes[tokens]
    return z + (e - z).detach(), F.mse_loss(e, z.detach())


def quantise__sum_in_place_of_mean(z, tokens, codes, beta):
    e = codes[tokens]
    loss = (e - z.detach()).square().sum() + beta * (z - e.detach()).square().sum()
    return z + (e - z).detach(), loss


def quantise__sum_over_the_vector(z, tokens, codes, beta):
    e = codes[tokens]
    both = (e - z.detach()).square() + beta * (z - e.detach()).square()
    return z + (e - z).detach(), both.sum(-1).mean()


def quantise__a_loss_for_each_feature(z, tokens, codes, beta):
    e = codes[tokens]
    both = (e - z.detach()).square() + beta * (z - e.detach()).square()
    return z + (e - z).detach(), both.mean(-1)


def quantise__always_a_quarter(z, tokens, codes, beta):
    e = codes[tokens]
    loss = F.mse_loss(e, z.detach()) + 0.25 * F.mse_loss(z, e.detach())
    return z + (e - z).detach(), loss


def follow__of_this_update_only(codes, counts, sums, z, tokens, decay):
    n = torch.bincount(tokens, minlength=len(codes)).to(counts)
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    means = total / n.clamp(min=1e-12)[:, None]
    new = torch.where(n[:, None] > 0, means, codes)
    counts = decay * counts + (1 - decay) * n
    return new, counts, decay * sums + (1 - decay) * total


def follow__weights_swapped(codes, counts, sums, z, tokens, decay):
    n = torch.bincount(tokens, minlength=len(codes)).to(counts)
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    counts = (1 - decay) * counts + decay * n
    sums = (1 - decay) * sums + decay * total
    means = sums / counts.clamp(min=1e-12)[:, None]
    return torch.where(counts[:, None] > 0, means, codes), counts, sums


def follow__unused_codes_are_lost(codes, counts, sums, z, tokens, decay):
    n = torch.bincount(tokens, minlength=len(codes)).to(counts)
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    counts = decay * counts + (1 - decay) * n
    sums = decay * sums + (1 - decay) * total
    return sums / counts[:, None], counts, sums


def follow__unused_codes_go_to_zero(codes, counts, sums, z, tokens, decay):
    n = torch.bincount(tokens, minlength=len(codes)).to(counts)
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    counts = decay * counts + (1 - decay) * n
    sums = decay * sums + (1 - decay) * total
    return sums / counts.clamp(min=1e-12)[:, None], counts, sums


def follow__unused_averages_stand_still(codes, counts, sums, z, tokens, decay):
    n = torch.bincount(tokens, minlength=len(codes)).to(counts)
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    counts = torch.where(n > 0, decay * counts + (1 - decay) * n, counts)
    sums = torch.where(n[:, None] > 0, decay * sums + (1 - decay) * total, sums)
    means = sums / counts.clamp(min=1e-12)[:, None]
    return torch.where(counts[:, None] > 0, means, codes), counts, sums


def follow__mean_in_place_of_sum(codes, counts, sums, z, tokens, decay):
    n = torch.bincount(tokens, minlength=len(codes)).to(counts)
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    counts = decay * counts + (1 - decay) * n
    sums = decay * sums + (1 - decay) * total / n.clamp(min=1)[:, None]
    means = sums / counts.clamp(min=1e-12)[:, None]
    return torch.where(counts[:, None] > 0, means, codes), counts, sums


def follow__averages_the_codes(codes, counts, sums, z, tokens, decay):
    n = torch.bincount(tokens, minlength=len(codes)).to(counts)
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    means = torch.where(n[:, None] > 0, total / n.clamp(min=1)[:, None], codes)
    counts = decay * counts + (1 - decay) * n
    sums = decay * sums + (1 - decay) * total
    return decay * codes + (1 - decay) * means, counts, sums


def follow__codes_before_the_update(codes, counts, sums, z, tokens, decay):
    means = sums / counts.clamp(min=1e-12)[:, None]
    new = torch.where(counts[:, None] > 0, means, codes)
    n = torch.bincount(tokens, minlength=len(codes)).to(counts)
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    return new, decay * counts + (1 - decay) * n, decay * sums + (1 - decay) * total


def follow__arguments_changed(codes, counts, sums, z, tokens, decay):
    n = torch.bincount(tokens, minlength=len(codes)).to(counts)
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    counts.mul_(decay).add_((1 - decay) * n)
    sums.mul_(decay).add_((1 - decay) * total)
    means = sums / counts.clamp(min=1e-12)[:, None]
    return torch.where(counts[:, None] > 0, means, codes), counts, sums


def follow__keeps_the_gradient(codes, counts, sums, z, tokens, decay):
    n = torch.bincount(tokens, minlength=len(codes)).to(counts)
    total = torch.zeros_like(sums).index_add(0, tokens, z)
    counts = decay * counts + (1 - decay) * n
    sums = decay * sums + (1 - decay) * total
    means = sums / counts.clamp(min=1e-12)[:, None]
    return torch.where(counts[:, None] > 0, means, codes), counts, sums


def follow__repeated_tokens_count_once(codes, counts, sums, z, tokens, decay):
    n = torch.zeros_like(counts)
    n[tokens] += 1
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    counts = decay * counts + (1 - decay) * n
    sums = decay * sums + (1 - decay) * total
    means = sums / counts.clamp(min=1e-12)[:, None]
    return torch.where(counts[:, None] > 0, means, codes), counts, sums


def follow__too_few_counted(codes, counts, sums, z, tokens, decay):
    n = torch.bincount(tokens).to(counts)
    total = torch.zeros_like(sums).index_add_(0, tokens, z.detach())
    counts = decay * counts + (1 - decay) * n
    sums = decay * sums + (1 - decay) * total
    return torch.where(counts[:, None] > 0, sums / counts[:, None], codes), counts, sums


def perplexity__codes_that_occur(tokens, vocab_size):
    return torch.tensor(float(len(tokens.unique())))


def perplexity__entropy_only(tokens, vocab_size):
    p = torch.bincount(tokens.flatten(), minlength=vocab_size) / tokens.numel()
    return torch.special.entr(p).sum()


def perplexity__two_to_the_nats(tokens, vocab_size):
    p = torch.bincount(tokens.flatten(), minlength=vocab_size) / tokens.numel()
    return 2 ** torch.special.entr(p).sum()


def perplexity__nan_for_absent_codes(tokens, vocab_size):
    p = torch.bincount(tokens.flatten(), minlength=vocab_size) / tokens.numel()
    return (-(p * p.log()).sum()).exp()


def perplexity__sign_forgotten(tokens, vocab_size):
    p = torch.bincount(tokens.flatten(), minlength=vocab_size) / tokens.numel()
    return (-torch.special.entr(p).sum()).exp()


def perplexity__inverse_of_summed_squares(tokens, vocab_size):
    p = torch.bincount(tokens.flatten(), minlength=vocab_size) / tokens.numel()
    return 1 / p.square().sum()


def perplexity__mean_over_the_codes(tokens, vocab_size):
    p = torch.bincount(tokens.flatten(), minlength=vocab_size) / tokens.numel()
    return torch.special.entr(p).mean().exp()


def perplexity__every_code_counted_once_more(tokens, vocab_size):
    n = torch.bincount(tokens.flatten(), minlength=vocab_size) + 1
    return torch.special.entr(n / n.sum()).sum().exp()


def perplexity__mean_of_the_images(tokens, vocab_size):
    found = []
    for row in tokens.view(len(tokens), -1):
        p = torch.bincount(row, minlength=vocab_size) / row.numel()
        found.append(torch.special.entr(p).sum().exp())
    return torch.stack(found).mean()


def perplexity__a_plain_number(tokens, vocab_size):
    p = torch.bincount(tokens.flatten(), minlength=vocab_size) / tokens.numel()
    return torch.special.entr(p).sum().exp().item()


def perplexity__share_of_the_codebook(tokens, vocab_size):
    p = torch.bincount(tokens.flatten(), minlength=vocab_size) / tokens.numel()
    return torch.special.entr(p).sum().exp() / vocab_size
