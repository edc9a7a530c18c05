"""Wrong answers to assignment 2, each with the mistake in its name: `exercise__mistake`."""

import math

import torch
import torch.nn.functional as F


def log_relaxed_bit__log_of_sigmoid(logits, tau, uniform):
    y = ((logits + uniform.logit()) / tau).sigmoid()
    return y.log(), (1 - y).log()


def log_relaxed_bit__clamped(logits, tau, uniform):
    y = ((logits + uniform.logit()) / tau).sigmoid().clamp(1e-3, 1 - 1e-3)
    return y.log(), (1 - y).log()


def log_relaxed_bit__noise_after_temperature(logits, tau, uniform):
    sure = logits / tau + uniform.logit()
    return F.logsigmoid(sure), F.logsigmoid(-sure)


def log_relaxed_bit__noise_subtracted(logits, tau, uniform):
    sure = (logits - uniform.logit()) / tau
    return F.logsigmoid(sure), F.logsigmoid(-sure)


def log_relaxed_bit__one_gumbel(logits, tau, uniform):
    sure = (logits - torch.log(-torch.log(uniform))) / tau
    return F.logsigmoid(sure), F.logsigmoid(-sure)


def log_relaxed_bit__the_law_itself(logits, tau, uniform):
    sure = (logits + uniform.sigmoid()) / tau
    return F.logsigmoid(sure), F.logsigmoid(-sure)


def log_relaxed_bit__no_noise(logits, tau, uniform):
    return F.logsigmoid(logits / tau), F.logsigmoid(-logits / tau)


def log_relaxed_bit__noise_around_zero(logits, tau, uniform):
    sure = (logits + uniform - 0.5) / tau
    return F.logsigmoid(sure), F.logsigmoid(-sure)


def log_relaxed_bit__temperature_multiplied(logits, tau, uniform):
    sure = (logits + uniform.logit()) * tau
    return F.logsigmoid(sure), F.logsigmoid(-sure)


def log_relaxed_bit__on_and_off_swapped(logits, tau, uniform):
    sure = (logits + uniform.logit()) / tau
    return F.logsigmoid(-sure), F.logsigmoid(sure)


def log_relaxed_bit__no_logarithm(logits, tau, uniform):
    y = ((logits + uniform.logit()) / tau).sigmoid()
    return y, 1 - y


def log_relaxed_bit__no_gradient(logits, tau, uniform):
    sure = (logits.detach() + uniform.logit()) / tau
    return F.logsigmoid(sure), F.logsigmoid(-sure)


def log_relaxed_bit__hard_bits(logits, tau, uniform):
    sure = torch.where(logits + uniform.logit() > 0, 1.0, -1.0) / tau + 0 * logits
    return F.logsigmoid(sure), F.logsigmoid(-sure)


def straight_through__only_hard(soft):
    return F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)


def straight_through__only_soft(soft):
    return soft


def straight_through__no_detach(soft):
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + soft - soft


def straight_through__detach_on_the_wrong_one(soft):
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard + soft.detach() - soft


def straight_through__hard_times_soft(soft):
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
    return hard * soft / soft.detach()


def straight_through__first_axis(soft):
    hard = F.one_hot(soft.argmax(0), soft.shape[0]).to(soft.dtype).movedim(-1, 0)
    return hard + soft - soft.detach()


def straight_through__channel_axis(soft):
    place = soft.argmax(1 if soft.ndim > 2 else -1, keepdim=True)
    hard = torch.zeros_like(soft).scatter(1 if soft.ndim > 2 else -1, place, 1.0)
    return hard + soft - soft.detach()


def straight_through__float32(soft):
    hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).float()
    return hard + soft.float() - soft.float().detach()


def straight_through__sum_of_both(soft):
    return F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype) + soft


def kl_to_prior__reversed(logits, prior):
    log_q = logits.log_softmax(-1)
    return (prior * (prior.log() - log_q)).sum(-1)


def kl_to_prior__cross_entropy(logits, prior):
    return -(logits.softmax(-1) * prior.log()).sum(-1)


def kl_to_prior__always_uniform(logits, prior):
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * log_q).sum(-1) + math.log(logits.shape[-1])


def kl_to_prior__mean_over_codes(logits, prior):
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - prior.log())).mean(-1)


def kl_to_prior__one_number(logits, prior):
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - prior.log())).sum()


def kl_to_prior__log_of_softmax(logits, prior):
    q = logits.softmax(-1)
    return (q * (q.log() - prior.log())).sum(-1)


def kl_to_prior__epsilon(logits, prior):
    q = logits.softmax(-1)
    return (q * ((q + 1e-2).log() - prior.log())).sum(-1)


def kl_to_prior__bits(logits, prior):
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - prior.log())).sum(-1) / math.log(2)


def kl_to_prior__logits_not_normalised(logits, prior):
    return (logits.softmax(-1) * (logits - prior.log())).sum(-1)


def kl_to_prior__minus(logits, prior):
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (prior.log() - log_q)).sum(-1)


def kl_to_prior__kl_div_arguments_swapped(logits, prior):
    log_q = logits.log_softmax(-1)
    return F.kl_div(log_q, prior.expand_as(log_q), reduction="none").sum(-1)


def dvae_loss__two_means(nll, kl, beta):
    return nll.mean() + beta * kl.mean()


def dvae_loss__sum(nll, kl, beta):
    return nll.sum() + beta * kl.sum()


def dvae_loss__sum_over_batch(nll, kl, beta):
    return (nll.sum() + beta * kl.sum()) / nll[0].numel()


def dvae_loss__per_image(nll, kl, beta):
    return (nll.sum() + beta * kl.sum()) / len(nll)


def dvae_loss__divided_twice(nll, kl, beta):
    cells_per_value = kl[0].numel() / nll[0].numel()
    return (nll.sum() + beta * cells_per_value * kl.sum()) / nll.numel()


def dvae_loss__beta_on_the_wrong_term(nll, kl, beta):
    return (beta * nll.sum() + kl.sum()) / nll.numel()


def dvae_loss__minus(nll, kl, beta):
    return (nll.sum() - beta * kl.sum()) / nll.numel()


def dvae_loss__pixels_not_values(nll, kl, beta):
    return nll.mean() + beta * kl.sum() / (nll.numel() / 3)


def dvae_loss__one_number_an_image(nll, kl, beta):
    return nll.mean((1, 2, 3)) + beta * kl.sum((1, 2)) / nll[0].numel()


def dvae_loss__python_number(nll, kl, beta):
    return (nll.sum().item() + beta * kl.sum().item()) / nll.numel()


def dvae_loss__kl_without_gradient(nll, kl, beta):
    return (nll.sum() + beta * kl.detach().sum()) / nll.numel()


def dvae_loss__paper_size_only(nll, kl, beta):
    return nll.mean() + beta * kl.mean() / 192
