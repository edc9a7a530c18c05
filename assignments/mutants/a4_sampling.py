"""Wrong answers to assignment 4, each with the mistake in its name: `exercise__mistake`."""

import math

import torch


def top_k__not_rescaled(p, k):
    least = p.topk(min(k, p.shape[1]), dim=1).values[:, -1:]
    return p * (p >= least)


def top_k__one_too_few(p, k):
    least = p.topk(min(k, p.shape[1]), dim=1).values[:, -1:]
    kept = p * (p > least)
    return kept / kept.sum(1, keepdim=True)


def top_k__one_too_many(p, k):
    least = p.topk(min(k + 1, p.shape[1]), dim=1).values[:, -1:]
    kept = p * (p >= least)
    return kept / kept.sum(1, keepdim=True)


def top_k__smallest(p, k):
    most = p.topk(min(k, p.shape[1]), dim=1, largest=False).values[:, -1:]
    kept = p * (p <= most)
    return kept / kept.sum(1, keepdim=True)


def top_k__over_the_whole_batch(p, k):
    least = p.flatten().topk(min(k * len(p), p.numel())).values[-1]
    kept = p * (p >= least)
    return kept / kept.sum(1, keepdim=True)


def top_k__softmax_again(p, k):
    least = p.topk(min(k, p.shape[1]), dim=1).values[:, -1:]
    return p.masked_fill(p < least, float("-inf")).softmax(1)


def top_k__rescaled_over_the_batch(p, k):
    least = p.topk(min(k, p.shape[1]), dim=1).values[:, -1:]
    kept = p * (p >= least)
    return kept / kept.sum(0, keepdim=True).clamp(min=1e-9)


def top_k__large_k_fails(p, k):
    least = p.topk(k, dim=1).values[:, -1:]
    kept = p * (p >= least)
    return kept / kept.sum(1, keepdim=True)


def top_k__changes_p(p, k):
    least = p.topk(min(k, p.shape[1]), dim=1).values[:, -1:]
    p[p < least] = 0
    return p / p.sum(1, keepdim=True)


def top_k__sorted(p, k):
    kept = p.topk(min(k, p.shape[1]), dim=1).values
    kept = torch.cat([kept, torch.zeros(len(p), p.shape[1] - kept.shape[1])], 1)
    return kept / kept.sum(1, keepdim=True)


def top_p__without_the_crossing_token(p, mass):
    ordered, order = p.sort(dim=1, descending=True)
    kept = torch.zeros_like(p).scatter(1, order, ordered * (ordered.cumsum(1) <= mass))
    return kept / kept.sum(1, keepdim=True)


def top_p__one_too_many(p, mass):
    ordered, order = p.sort(dim=1, descending=True)
    before = ordered.cumsum(1) - ordered
    before = torch.cat([before[:, :1], before[:, :-1]], 1)
    kept = torch.zeros_like(p).scatter(1, order, ordered * (before < mass))
    return kept / kept.sum(1, keepdim=True)


def top_p__one_more_at_the_edge(p, mass):
    ordered, order = p.sort(dim=1, descending=True)
    before = ordered.cumsum(1) - ordered
    kept = torch.zeros_like(p).scatter(1, order, ordered * (before <= mass))
    return kept / kept.sum(1, keepdim=True)


def top_p__not_sorted(p, mass):
    kept = p * (p.cumsum(1) - p < mass)
    return kept / kept.sum(1, keepdim=True)


def top_p__smallest_first(p, mass):
    ordered, order = p.sort(dim=1)
    before = ordered.cumsum(1) - ordered
    kept = torch.zeros_like(p).scatter(1, order, ordered * (before < mass))
    return kept / kept.sum(1, keepdim=True)


def top_p__left_in_sorted_order(p, mass):
    ordered, _ = p.sort(dim=1, descending=True)
    kept = ordered * (ordered.cumsum(1) - ordered < mass)
    return kept / kept.sum(1, keepdim=True)


def top_p__not_rescaled(p, mass):
    ordered, order = p.sort(dim=1, descending=True)
    before = ordered.cumsum(1) - ordered
    return torch.zeros_like(p).scatter(1, order, ordered * (before < mass))


def top_p__threshold_on_each_token(p, mass):
    kept = p * (p >= 1 - mass)
    return kept / kept.sum(1, keepdim=True)


def top_p__order_used_backwards(p, mass):
    ordered, order = p.sort(dim=1, descending=True)
    kept = (ordered * (ordered.cumsum(1) - ordered < mass)).gather(1, order)
    return kept / kept.sum(1, keepdim=True)


def sample__temperature_multiplied(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax(1)
    p = (logits * temperature).softmax(1)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def sample__temperature_after_softmax(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax(1)
    p = logits.softmax(1) / temperature
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def sample__ignores_the_generator(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax(1)
    return torch.multinomial((logits / temperature).softmax(1), 1)[:, 0]


def sample__seeds_its_own(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax(1)
    own = torch.Generator().manual_seed(0)
    return torch.multinomial((logits / temperature).softmax(1), 1, generator=own)[:, 0]


def sample__always_the_likeliest(logits, temperature, generator):
    return logits.argmax(1)


def sample__divides_by_zero(logits, temperature, generator):
    p = (logits / temperature).softmax(1)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def sample__one_column(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax(1, keepdim=True)
    p = (logits / temperature).softmax(1)
    return torch.multinomial(p, 1, generator=generator)


def sample__softmax_over_the_batch(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax(1)
    p = (logits / temperature).softmax(0)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def sample__softmax_twice(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax(1)
    p = (logits / temperature).softmax(1).softmax(1)
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def sample__first_row_for_all(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax(1)
    p = (logits[0] / temperature).softmax(0)
    return torch.multinomial(p, len(logits), replacement=True, generator=generator)


def step__never_drops(q, k, v, cache, text_len, window):
    keys, values = k[:, None], v[:, None]
    if cache is not None:
        keys, values = torch.cat([cache[0], keys], 1), torch.cat([cache[1], values], 1)
    scores = (keys @ q[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])
    return (scores.softmax(1)[:, None] @ values)[:, 0], (keys, values)


def step__drops_the_newest(q, k, v, cache, text_len, window):
    keys, values = k[:, None], v[:, None]
    if cache is not None:
        keys, values = torch.cat([cache[0], keys], 1), torch.cat([cache[1], values], 1)
    keys, values = keys[:, : text_len + window], values[:, : text_len + window]
    scores = (keys @ q[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])
    return (scores.softmax(1)[:, None] @ values)[:, 0], (keys, values)


def step__drops_the_text(q, k, v, cache, text_len, window):
    keys, values = k[:, None], v[:, None]
    if cache is not None:
        keys, values = torch.cat([cache[0], keys], 1), torch.cat([cache[1], values], 1)
    keys, values = keys[:, -(text_len + window) :], values[:, -(text_len + window) :]
    scores = (keys @ q[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])
    return (scores.softmax(1)[:, None] @ values)[:, 0], (keys, values)


def step__values_not_shifted(q, k, v, cache, text_len, window):
    keys, values = k[:, None], v[:, None]
    if cache is not None:
        keys, values = torch.cat([cache[0], keys], 1), torch.cat([cache[1], values], 1)
    if keys.shape[1] > text_len + window:
        kept = [i for i in range(keys.shape[1]) if i != text_len]
        keys, values = keys[:, kept], values[:, :-1]
    scores = (keys @ q[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])
    return (scores.softmax(1)[:, None] @ values)[:, 0], (keys, values)


def step__does_not_see_itself(q, k, v, cache, text_len, window):
    if cache is None:
        return v, (k[:, None], v[:, None])
    scores = (cache[0] @ q[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])
    seen = (scores.softmax(1)[:, None] @ cache[1])[:, 0]
    keys = torch.cat([cache[0], k[:, None]], 1)
    values = torch.cat([cache[1], v[:, None]], 1)
    if keys.shape[1] > text_len + window:
        kept = [i for i in range(keys.shape[1]) if i != text_len]
        keys, values = keys[:, kept], values[:, kept]
    return seen, (keys, values)


def step__drops_after_attending(q, k, v, cache, text_len, window):
    keys, values = k[:, None], v[:, None]
    if cache is not None:
        keys, values = torch.cat([cache[0], keys], 1), torch.cat([cache[1], values], 1)
    scores = (keys @ q[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])
    seen = (scores.softmax(1)[:, None] @ values)[:, 0]
    if keys.shape[1] > text_len + window:
        kept = [i for i in range(keys.shape[1]) if i != text_len]
        keys, values = keys[:, kept], values[:, kept]
    return seen, (keys, values)


def step__no_scale(q, k, v, cache, text_len, window):
    keys, values = k[:, None], v[:, None]
    if cache is not None:
        keys, values = torch.cat([cache[0], keys], 1), torch.cat([cache[1], values], 1)
    if keys.shape[1] > text_len + window:
        kept = [i for i in range(keys.shape[1]) if i != text_len]
        keys, values = keys[:, kept], values[:, kept]
    scores = (keys @ q[:, :, None])[:, :, 0]
    return (scores.softmax(1)[:, None] @ values)[:, 0], (keys, values)


def step__writes_into_the_cache(q, k, v, cache, text_len, window):
    keys, values = k[:, None], v[:, None]
    if cache is not None and cache[0].shape[1] == text_len + window:
        keys, values = cache
        for old, new in ((keys, k), (values, v)):
            old[:, text_len:-1] = old[:, text_len + 1 :].clone()
            old[:, -1] = new
    elif cache is not None:
        keys, values = torch.cat([cache[0], keys], 1), torch.cat([cache[1], values], 1)
    scores = (keys @ q[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])
    return (scores.softmax(1)[:, None] @ values)[:, 0], (keys, values)


def step__window_without_the_new_state(q, k, v, cache, text_len, window):
    keys, values = k[:, None], v[:, None]
    if cache is not None:
        keys, values = torch.cat([cache[0], keys], 1), torch.cat([cache[1], values], 1)
    if keys.shape[1] > text_len + window + 1:
        kept = [i for i in range(keys.shape[1]) if i != text_len]
        keys, values = keys[:, kept], values[:, kept]
    scores = (keys @ q[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])
    return (scores.softmax(1)[:, None] @ values)[:, 0], (keys, values)


def step__attends_with_values(q, k, v, cache, text_len, window):
    keys, values = k[:, None], v[:, None]
    if cache is not None:
        keys, values = torch.cat([cache[0], keys], 1), torch.cat([cache[1], values], 1)
    if keys.shape[1] > text_len + window:
        kept = [i for i in range(keys.shape[1]) if i != text_len]
        keys, values = keys[:, kept], values[:, kept]
    scores = (values @ q[:, :, None])[:, :, 0] / math.sqrt(q.shape[1])
    return (scores.softmax(1)[:, None] @ values)[:, 0], (keys, values)


def complete__reads_only_the_last(predict, prompt, length, pick):
    tokens = prompt
    while tokens.shape[1] < length:
        tokens = torch.cat([tokens, pick(predict(tokens[:, -1:]))[:, None]], 1)
    return tokens


def complete__reads_only_the_prompt(predict, prompt, length, pick):
    tokens = prompt
    while tokens.shape[1] < length:
        tokens = torch.cat([tokens, pick(predict(prompt))[:, None]], 1)
    return tokens


def complete__without_the_prompt(predict, prompt, length, pick):
    tokens = prompt
    while tokens.shape[1] < length:
        tokens = torch.cat([tokens, pick(predict(tokens))[:, None]], 1)
    return tokens[:, prompt.shape[1] :]


def complete__length_more_tokens(predict, prompt, length, pick):
    tokens = prompt
    for _ in range(length):
        tokens = torch.cat([tokens, pick(predict(tokens))[:, None]], 1)
    return tokens


def complete__one_too_few(predict, prompt, length, pick):
    tokens = prompt
    while tokens.shape[1] < length - 1:
        tokens = torch.cat([tokens, pick(predict(tokens))[:, None]], 1)
    return tokens


def complete__at_least_one(predict, prompt, length, pick):
    tokens = prompt
    while True:
        tokens = torch.cat([tokens, pick(predict(tokens))[:, None]], 1)
        if tokens.shape[1] >= length:
            return tokens


def complete__new_token_in_front(predict, prompt, length, pick):
    tokens = prompt
    while tokens.shape[1] < length:
        tokens = torch.cat([pick(predict(tokens))[:, None], tokens], 1)
    return tokens


def complete__predicts_twice(predict, prompt, length, pick):
    tokens = prompt
    while tokens.shape[1] < length:
        predict(tokens)
        tokens = torch.cat([tokens, pick(predict(tokens))[:, None]], 1)
    return tokens


def complete__always_greedy(predict, prompt, length, pick):
    tokens = prompt
    while tokens.shape[1] < length:
        tokens = torch.cat([tokens, predict(tokens).argmax(1)[:, None]], 1)
    return tokens


def complete__float(predict, prompt, length, pick):
    tokens = torch.zeros(len(prompt), length)
    tokens[:, : prompt.shape[1]] = prompt
    for t in range(prompt.shape[1], length):
        tokens[:, t] = pick(predict(tokens[:, :t].long()))
    return tokens
