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


def contrastive_loss__ignores_the_target(image, text, temperature, target):
    logits = image @ text.T / temperature
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def contrastive_loss__likeliest_target_only(image, text, temperature, target):
    logits = image @ text.T / temperature
    own = target.argmax(1)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def contrastive_loss__one_direction(image, text, temperature, target):
    return F.cross_entropy(image @ text.T / temperature, target)


def contrastive_loss__same_direction_twice(image, text, temperature, target):
    logits = image @ text.T / temperature
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits, target.T)) / 2


def contrastive_loss__temperature_multiplied(image, text, temperature, target):
    logits = image @ text.T * temperature
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def contrastive_loss__not_halved(image, text, temperature, target):
    logits = image @ text.T / temperature
    return F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)


def contrastive_loss__not_averaged(image, text, temperature, target):
    logits = image @ text.T / temperature
    images = F.cross_entropy(logits, target, reduction="sum")
    return (images + F.cross_entropy(logits.T, target, reduction="sum")) / 2


def contrastive_loss__mean_of_all_entries(image, text, temperature, target):
    logits = image @ text.T / temperature
    return -(target * (logits.log_softmax(1) + logits.log_softmax(0))).mean() / 2


def contrastive_loss__logarithm_of_softmax(image, text, temperature, target):
    odds = (image @ text.T / temperature).exp()
    nats = (odds / odds.sum(1, keepdim=True)).log() + (odds / odds.sum(0, keepdim=True)).log()
    return -(target * nats).sum() / (2 * len(image))


def contrastive_loss__softmax_twice(image, text, temperature, target):
    p = (image @ text.T / temperature).softmax(1)
    return (F.cross_entropy(p, target) + F.cross_entropy(p.T, target)) / 2


def contrastive_loss__not_divided(image, text, temperature, target):
    logits = image @ text.T
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def recall_at_k__columns(similarity, k):
    better = similarity > similarity.diagonal()
    return (better.sum(0) < k).float().mean().item()


def recall_at_k__one_too_many(similarity, k):
    better = similarity > similarity.diagonal()[:, None]
    return (better.sum(1) <= k).float().mean().item()


def recall_at_k__one_too_few(similarity, k):
    better = similarity >= similarity.diagonal()[:, None]
    return (better.sum(1) < k).float().mean().item()


def recall_at_k__number(similarity, k):
    better = similarity > similarity.diagonal()[:, None]
    return float((better.sum(1) < k).sum())


def recall_at_k__tensor(similarity, k):
    better = similarity > similarity.diagonal()[:, None]
    return (better.sum(1) < k).float().mean()


def recall_at_k__first_guess_only(similarity, k):
    right = similarity.argmax(1) == torch.arange(len(similarity))
    return right.float().mean().item()


def recall_at_k__least_similar(similarity, k):
    worse = similarity < similarity.diagonal()[:, None]
    return (worse.sum(1) < k).float().mean().item()


def recall_at_k__best_of_the_whole_matrix(similarity, k):
    least = similarity.flatten().topk(k * len(similarity)).values[-1]
    return (similarity.diagonal() >= least).float().mean().item()


def recall_at_k__divided_by_k(similarity, k):
    better = similarity > similarity.diagonal()[:, None]
    return (better.sum(1) < k).float().mean().item() / k


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
