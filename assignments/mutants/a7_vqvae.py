"""Wrong answers to assignment 7, each with the mistake in its name: `exercise__mistake`."""

import math

import torch


def residual_tokens__length_of_the_codes_forgotten(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        tokens.append((-2 * rest @ codes.T).argmin(-1))
        rest = rest - codes[tokens[-1]]
    return torch.stack(tokens, -1)


def residual_tokens__product_not_doubled(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        tokens.append((codes.square().sum(-1) - rest @ codes.T).argmin(-1))
        rest = rest - codes[tokens[-1]]
    return torch.stack(tokens, -1)


def residual_tokens__by_angle(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        tokens.append(torch.cosine_similarity(rest[..., None, :], codes, dim=-1).argmax(-1))
        rest = rest - codes[tokens[-1]]
    return torch.stack(tokens, -1)


def residual_tokens__sum_of_absolute_differences(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        tokens.append((rest[..., None, :] - codes).abs().sum(-1).argmin(-1))
        rest = rest - codes[tokens[-1]]
    return torch.stack(tokens, -1)


def residual_tokens__the_farthest(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        tokens.append((codes.square().sum(-1) - 2 * rest @ codes.T).argmax(-1))
        rest = rest - codes[tokens[-1]]
    return torch.stack(tokens, -1)


def residual_tokens__highest_number_of_equals(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        distance = codes.square().sum(-1) - 2 * rest @ codes.T
        tokens.append(len(codes) - 1 - distance.flip(-1).argmin(-1))
        rest = rest - codes[tokens[-1]]
    return torch.stack(tokens, -1)


def residual_tokens__nothing_is_subtracted(z, codes, depth):
    token = (codes.square().sum(-1) - 2 * z @ codes.T).argmin(-1)
    return torch.stack([token] * depth, -1)


def residual_tokens__the_next_nearest(z, codes, depth):
    distance = codes.square().sum(-1) - 2 * z @ codes.T
    return distance.argsort(-1, stable=True)[..., :depth]


def residual_tokens__added_in_place_of_subtracted(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        tokens.append((codes.square().sum(-1) - 2 * rest @ codes.T).argmin(-1))
        rest = rest + codes[tokens[-1]]
    return torch.stack(tokens, -1)


def residual_tokens__rest_of_z_alone(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        tokens.append((codes.square().sum(-1) - 2 * rest @ codes.T).argmin(-1))
        rest = z - codes[tokens[-1]]
    return torch.stack(tokens, -1)


def residual_tokens__finest_first(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        tokens.insert(0, (codes.square().sum(-1) - 2 * rest @ codes.T).argmin(-1))
        rest = rest - codes[tokens[0]]
    return torch.stack(tokens, -1)


def residual_tokens__depth_on_the_first_axis(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        tokens.append((codes.square().sum(-1) - 2 * rest @ codes.T).argmin(-1))
        rest = rest - codes[tokens[-1]]
    return torch.stack(tokens)


def residual_tokens__changes_z(z, codes, depth):
    tokens = []
    for _ in range(depth):
        tokens.append((codes.square().sum(-1) - 2 * z @ codes.T).argmin(-1))
        z -= codes[tokens[-1]]
    return torch.stack(tokens, -1)


def residual_tokens__small_integers(z, codes, depth):
    rest, tokens = z, []
    for _ in range(depth):
        tokens.append((codes.square().sum(-1) - 2 * rest @ codes.T).argmin(-1))
        rest = rest - codes[tokens[-1]]
    return torch.stack(tokens, -1).int()


def round_levels__no_gradient(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    whole = (half * z.tanh()).round()
    tokens = torch.zeros(len(z), dtype=torch.int64)
    for digit, level in zip((whole + half).long().T, levels, strict=True):
        tokens = tokens * level + digit
    return (whole / half).detach(), tokens


def round_levels__reads_what_is_not_rounded(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    whole = (half * z.tanh()).round()
    tokens = torch.zeros(len(z), dtype=torch.int64)
    for digit, level in zip((whole + half).long().T, levels, strict=True):
        tokens = tokens * level + digit
    return z.tanh(), tokens


def round_levels__gradient_past_the_tanh(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    whole = (half * z.tanh()).round()
    tokens = torch.zeros(len(z), dtype=torch.int64)
    for digit, level in zip((whole + half).long().T, levels, strict=True):
        tokens = tokens * level + digit
    return z + (whole / half - z).detach(), tokens


def round_levels__not_divided(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    soft = half * z.tanh()
    tokens = torch.zeros(len(z), dtype=torch.int64)
    for digit, level in zip((soft.round() + half).long().T, levels, strict=True):
        tokens = tokens * level + digit
    return soft + (soft.round() - soft).detach(), tokens


def round_levels__cut_in_place_of_squeezed(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    soft = z.clamp(-1, 1)
    whole = (half * soft).round()
    tokens = torch.zeros(len(z), dtype=torch.int64)
    for digit, level in zip((whole + half).long().T, levels, strict=True):
        tokens = tokens * level + digit
    return soft + (whole / half - soft).detach(), tokens


def round_levels__one_level_too_many(z, levels):
    half = (torch.tensor(levels) + 1) / 2
    soft = z.tanh()
    whole = (half * soft).round()
    tokens = torch.zeros(len(z), dtype=torch.int64)
    for digit, level in zip((whole + half).long().T, levels, strict=True):
        tokens = tokens * level + digit
    return soft + (whole / half - soft).detach(), tokens


def round_levels__rounds_down(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    soft = z.tanh()
    whole = (half * soft).floor()
    tokens = torch.zeros(len(z), dtype=torch.int64)
    for digit, level in zip((whole + half).long().T, levels, strict=True):
        tokens = tokens * level + digit
    return soft + (whole / half - soft).detach(), tokens


def round_levels__last_digit_counts_most(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    soft = z.tanh()
    whole = (half * soft).round()
    tokens = torch.zeros(len(z), dtype=torch.int64)
    digits = list(zip((whole + half).long().T, levels, strict=True))
    for digit, level in reversed(digits):
        tokens = tokens * level + digit
    return soft + (whole / half - soft).detach(), tokens


def round_levels__one_base_for_all_digits(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    soft = z.tanh()
    whole = (half * soft).round()
    tokens = torch.zeros(len(z), dtype=torch.int64)
    for digit in (whole + half).long().T:
        tokens = tokens * max(levels) + digit
    return soft + (whole / half - soft).detach(), tokens


def round_levels__digits_below_zero(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    soft = z.tanh()
    whole = (half * soft).round()
    tokens = torch.zeros(len(z), dtype=torch.int64)
    for digit, level in zip(whole.long().T, levels, strict=True):
        tokens = tokens * level + digit
    return soft + (whole / half - soft).detach(), tokens


def round_levels__tokens_of_the_first_digit(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    soft = z.tanh()
    whole = (half * soft).round()
    return soft + (whole / half - soft).detach(), (whole + half).long()[:, 0]


def round_levels__tokens_are_floats(z, levels):
    half = (torch.tensor(levels) - 1) / 2
    soft = z.tanh()
    whole = (half * soft).round()
    tokens = torch.zeros(len(z))
    for digit, level in zip((whole + half).T, levels, strict=True):
        tokens = tokens * level + digit
    return soft + (whole / half - soft).detach(), tokens


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


def balance_loss__signs_swapped(z, codes, tau):
    log_p = (-(z[:, None] - codes).square().sum(-1) / tau).log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    return (log_p.exp() * log_p).sum(-1).mean() - (log_mean.exp() * log_mean).sum()


def balance_loss__sure_only(z, codes, tau):
    log_p = (-(z[:, None] - codes).square().sum(-1) / tau).log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


def balance_loss__fair_only(z, codes, tau):
    log_p = (-(z[:, None] - codes).square().sum(-1) / tau).log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    return (log_mean.exp() * log_mean).sum()


def balance_loss__both_added(z, codes, tau):
    log_p = (-(z[:, None] - codes).square().sum(-1) / tau).log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    return -(log_p.exp() * log_p).sum(-1).mean() - (log_mean.exp() * log_mean).sum()


def balance_loss__sum_in_place_of_mean(z, codes, tau):
    log_p = (-(z[:, None] - codes).square().sum(-1) / tau).log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    return -(log_p.exp() * log_p).sum() + (log_mean.exp() * log_mean).sum()


def balance_loss__mean_over_the_codes(z, codes, tau):
    log_p = (-(z[:, None] - codes).square().sum(-1) / tau).log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    return -(log_p.exp() * log_p).mean() + (log_mean.exp() * log_mean).mean()


def balance_loss__mean_of_the_logarithms(z, codes, tau):
    log_p = (-(z[:, None] - codes).square().sum(-1) / tau).log_softmax(-1)
    log_mean = log_p.mean(0).log_softmax(0)
    return -(log_p.exp() * log_p).sum(-1).mean() + (log_mean.exp() * log_mean).sum()


def balance_loss__softmax_over_the_features(z, codes, tau):
    log_p = (-(z[:, None] - codes).square().sum(-1) / tau).log_softmax(0)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    return -(log_p.exp() * log_p).sum(-1).mean() + (log_mean.exp() * log_mean).sum()


def balance_loss__far_codes_get_more(z, codes, tau):
    log_p = ((z[:, None] - codes).square().sum(-1) / tau).log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    return -(log_p.exp() * log_p).sum(-1).mean() + (log_mean.exp() * log_mean).sum()


def balance_loss__distance_not_squared(z, codes, tau):
    log_p = (-(z[:, None] - codes).norm(dim=-1) / tau).log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    return -(log_p.exp() * log_p).sum(-1).mean() + (log_mean.exp() * log_mean).sum()


def balance_loss__temperature_multiplied(z, codes, tau):
    log_p = (-(z[:, None] - codes).square().sum(-1) * tau).log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    return -(log_p.exp() * log_p).sum(-1).mean() + (log_mean.exp() * log_mean).sum()


def balance_loss__in_bits(z, codes, tau):
    log_p = (-(z[:, None] - codes).square().sum(-1) / tau).log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    nats = -(log_p.exp() * log_p).sum(-1).mean() + (log_mean.exp() * log_mean).sum()
    return nats / math.log(2)


def balance_loss__nan_for_small_shares(z, codes, tau):
    p = (-(z[:, None] - codes).square().sum(-1) / tau).softmax(-1)
    mean = p.mean(0)
    return -(p * p.log()).sum(-1).mean() + (mean * mean.log()).sum()


def balance_loss__features_get_no_gradient(z, codes, tau):
    log_p = (-(z.detach()[:, None] - codes).square().sum(-1) / tau).log_softmax(-1)
    log_mean = log_p.logsumexp(0) - math.log(len(z))
    return -(log_p.exp() * log_p).sum(-1).mean() + (log_mean.exp() * log_mean).sum()
