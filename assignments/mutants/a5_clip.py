"""Wrong answers to assignment 5, each with the mistake in its name: `exercise__mistake`."""

import torch
import torch.nn.functional as F


def normalise__first_axis(x):
    return x / x.norm(dim=0, keepdim=True).clamp(min=1e-12)


def normalise__whole_tensor(x):
    return x / x.norm().clamp(min=1e-12)


def normalise__squared_length(x):
    return x / x.square().sum(-1, keepdim=True).clamp(min=1e-12)


def normalise__sum_of_entries(x):
    return x / x.abs().sum(-1, keepdim=True).clamp(min=1e-12)


def normalise__largest_entry(x):
    return x / x.abs().amax(-1, keepdim=True).clamp(min=1e-12)


def normalise__zero_becomes_nan(x):
    return x / x.norm(dim=-1, keepdim=True)


def normalise__large_epsilon(x):
    return x / (x.norm(dim=-1, keepdim=True) + 0.01)


def normalise__in_place(x):
    x /= x.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return x


def normalise__standardises(x):
    x = x - x.mean(-1, keepdim=True)
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def soft_targets__identity(captions):
    return torch.eye(len(captions))


def soft_targets__not_shared(captions):
    return torch.tensor([[a == b for b in captions] for a in captions]).float()


def soft_targets__divided_by_batch(captions):
    same = torch.tensor([[a == b for b in captions] for a in captions]).float()
    return same / len(captions)


def soft_targets__divided_by_everything(captions):
    same = torch.tensor([[a == b for b in captions] for a in captions]).float()
    return same / same.sum()


def soft_targets__first_one_only(captions):
    target = torch.zeros(len(captions), len(captions))
    for i, caption in enumerate(captions):
        target[i, captions.index(caption)] = 1.0
    return target


def soft_targets__without_itself(captions):
    same = torch.tensor([[a == b for b in captions] for a in captions]).float()
    same = same - torch.eye(len(captions))
    return same / same.sum(1, keepdim=True).clamp(min=1)


def soft_targets__compares_lengths(captions):
    same = torch.tensor([[len(a) == len(b) for b in captions] for a in captions]).float()
    return same / same.sum(1, keepdim=True)


def soft_targets__softmax(captions):
    same = torch.tensor([[a == b for b in captions] for a in captions]).float()
    return same.softmax(1)


def soft_targets__float64(captions):
    same = torch.tensor([[a == b for b in captions] for a in captions]).double()
    return same / same.sum(1, keepdim=True)


def sigmoid_loss__right_pairs_only(image, text, scale, bias, fits):
    logits = scale * image @ text.T + bias
    return -F.logsigmoid(logits)[fits].sum() / len(image)


def sigmoid_loss__wrong_pairs_only(image, text, scale, bias, fits):
    logits = scale * image @ text.T + bias
    return -F.logsigmoid(-logits)[~fits].sum() / len(image)


def sigmoid_loss__sign_forgotten(image, text, scale, bias, fits):
    return -F.logsigmoid(scale * image @ text.T + bias).sum() / len(image)


def sigmoid_loss__bias_forgotten(image, text, scale, bias, fits):
    sign = torch.where(fits, 1.0, -1.0)
    return -F.logsigmoid(sign * scale * (image @ text.T)).sum() / len(image)


def sigmoid_loss__bias_keeps_its_sign(image, text, scale, bias, fits):
    sign = torch.where(fits, 1.0, -1.0)
    return -F.logsigmoid(sign * scale * (image @ text.T) + bias).sum() / len(image)


def sigmoid_loss__divided_by_the_scale(image, text, scale, bias, fits):
    sign = torch.where(fits, 1.0, -1.0)
    return -F.logsigmoid(sign * (image @ text.T / scale + bias)).sum() / len(image)


def sigmoid_loss__mean_over_all_pairs(image, text, scale, bias, fits):
    sign = torch.where(fits, 1.0, -1.0)
    return -F.logsigmoid(sign * (scale * image @ text.T + bias)).mean()


def sigmoid_loss__not_divided(image, text, scale, bias, fits):
    sign = torch.where(fits, 1.0, -1.0)
    return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum()


def sigmoid_loss__divided_by_the_right_pairs(image, text, scale, bias, fits):
    sign = torch.where(fits, 1.0, -1.0)
    return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / fits.sum()


def sigmoid_loss__own_caption_only(image, text, scale, bias, fits):
    sign = 2 * torch.eye(len(image)) - 1
    return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / len(image)


def sigmoid_loss__logarithm_of_sigmoid(image, text, scale, bias, fits):
    sign = torch.where(fits, 1.0, -1.0)
    return -(sign * (scale * image @ text.T + bias)).sigmoid().log().sum() / len(image)


def sigmoid_loss__captions_down(image, text, scale, bias, fits):
    sign = torch.where(fits, 1.0, -1.0)
    return -F.logsigmoid(sign * (scale * text @ image.T + bias)).sum() / len(image)


def sigmoid_loss__softmax(image, text, scale, bias, fits):
    logits = scale * image @ text.T + bias
    return -(logits.log_softmax(1) * fits).sum() / len(image)


def mean_average_precision__least_similar_first(similarity, fits):
    hits = fits.gather(1, similarity.argsort(1)).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return ((precision * hits).sum(1) / hits.sum(1)).mean().item()


def mean_average_precision__not_sorted(similarity, fits):
    hits = fits.float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return ((precision * hits).sum(1) / hits.sum(1)).mean().item()


def mean_average_precision__at_every_place(similarity, fits):
    hits = fits.gather(1, similarity.argsort(1, descending=True)).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return precision.mean(1).mean().item()


def mean_average_precision__divided_by_all_captions(similarity, fits):
    hits = fits.gather(1, similarity.argsort(1, descending=True)).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return (precision * hits).mean().item()


def mean_average_precision__first_hit_only(similarity, fits):
    hits = fits.gather(1, similarity.argsort(1, descending=True)).float()
    return (1 / (hits.argmax(1) + 1)).mean().item()


def mean_average_precision__last_hit_only(similarity, fits):
    hits = fits.gather(1, similarity.argsort(1, descending=True)).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    last = (hits * torch.arange(1, hits.shape[1] + 1)).argmax(1)
    return precision[torch.arange(len(hits)), last].mean().item()


def mean_average_precision__all_notes_in_one_mean(similarity, fits):
    hits = fits.gather(1, similarity.argsort(1, descending=True)).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return ((precision * hits).sum() / hits.sum()).item()


def mean_average_precision__places_from_zero(similarity, fits):
    hits = fits.gather(1, similarity.argsort(1, descending=True)).float()
    precision = hits.cumsum(1) / torch.arange(hits.shape[1]).clamp(min=1)
    return ((precision * hits).sum(1) / hits.sum(1)).mean().item()


def mean_average_precision__as_many_as_fit(similarity, fits):
    hits = fits.gather(1, similarity.argsort(1, descending=True)).float()
    among = torch.arange(hits.shape[1]) < hits.sum(1, keepdim=True)
    return ((hits * among).sum(1) / hits.sum(1)).mean().item()


def mean_average_precision__hits_without_their_count(similarity, fits):
    hits = fits.gather(1, similarity.argsort(1, descending=True)).float()
    precision = hits / torch.arange(1, hits.shape[1] + 1)
    return (precision.sum(1) / hits.sum(1)).mean().item()


def mean_average_precision__a_tensor(similarity, fits):
    hits = fits.gather(1, similarity.argsort(1, descending=True)).float()
    precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1)
    return ((precision * hits).sum(1) / hits.sum(1)).mean()


def rerank__dot_product(vectors, caption, images, keep):
    scores = vectors @ caption
    best = scores.argsort(descending=True)[:keep]
    return images[best], scores[best]


def rerank__only_images_normalised(vectors, caption, images, keep):
    scores = F.normalize(vectors, dim=-1) @ caption
    best = scores.argsort(descending=True)[:keep]
    return images[best], scores[best]


def rerank__worst_first(vectors, caption, images, keep):
    scores = F.cosine_similarity(vectors, caption[None], dim=-1)
    best = scores.argsort()[:keep]
    return images[best], scores[best]


def rerank__best_last(vectors, caption, images, keep):
    scores = F.cosine_similarity(vectors, caption[None], dim=-1)
    best = scores.argsort()[-keep:]
    return images[best], scores[best]


def rerank__scores_not_sorted(vectors, caption, images, keep):
    scores = F.cosine_similarity(vectors, caption[None], dim=-1)
    best = scores.argsort(descending=True)[:keep]
    return images[best], scores[:keep]


def rerank__images_not_sorted(vectors, caption, images, keep):
    scores = F.cosine_similarity(vectors, caption[None], dim=-1)
    return images[:keep], scores.sort(descending=True).values[:keep]


def rerank__numbers_of_the_images(vectors, caption, images, keep):
    scores = F.cosine_similarity(vectors, caption[None], dim=-1)
    best = scores.argsort(descending=True)[:keep]
    return best, scores[best]


def rerank__keeps_all(vectors, caption, images, keep):
    scores = F.cosine_similarity(vectors, caption[None], dim=-1)
    best = scores.argsort(descending=True)
    return images[best], scores[best]


def rerank__softmax_scores(vectors, caption, images, keep):
    scores = F.cosine_similarity(vectors, caption[None], dim=-1).softmax(0)
    best = scores.argsort(descending=True)[:keep]
    return images[best], scores[best]


def rerank__distance(vectors, caption, images, keep):
    scores = -(vectors - caption).norm(dim=-1)
    best = scores.argsort(descending=True)[:keep]
    return images[best], scores[best]
