"""Wrong answers to assignment 4, each with the mistake in its name: `exercise__mistake`."""

import math

import torch


def temperature_for__entropy_for_perplexity(logits, perplexity):
    low, high = torch.full((len(logits),), -7.0), torch.full((len(logits),), 7.0)
    for _ in range(30):
        middle = (low + high) / 2
        log_p = (logits / middle.exp()[:, None]).log_softmax(1)
        too_bold = -(log_p.exp() * log_p).sum(1) > perplexity
        low, high = torch.where(too_bold, low, middle), torch.where(too_bold, middle, high)
    return middle.exp()


def temperature_for__entropy_in_bits(logits, perplexity):
    low, high = torch.full((len(logits),), -7.0), torch.full((len(logits),), 7.0)
    for _ in range(30):
        middle = (low + high) / 2
        log_p = (logits / middle.exp()[:, None]).log_softmax(1)
        too_bold = -(log_p.exp() * log_p).sum(1) / math.log(2) > math.log(perplexity)
        low, high = torch.where(too_bold, low, middle), torch.where(too_bold, middle, high)
    return middle.exp()


def temperature_for__multiplied(logits, perplexity):
    low, high = torch.full((len(logits),), -7.0), torch.full((len(logits),), 7.0)
    for _ in range(30):
        middle = (low + high) / 2
        log_p = (logits * middle.exp()[:, None]).log_softmax(1)
        too_bold = -(log_p.exp() * log_p).sum(1) > math.log(perplexity)
        low, high = torch.where(too_bold, middle, low), torch.where(too_bold, high, middle)
    return middle.exp()


def temperature_for__searches_the_wrong_half(logits, perplexity):
    low, high = torch.full((len(logits),), -7.0), torch.full((len(logits),), 7.0)
    for _ in range(30):
        middle = (low + high) / 2
        log_p = (logits / middle.exp()[:, None]).log_softmax(1)
        too_bold = -(log_p.exp() * log_p).sum(1) > math.log(perplexity)
        low, high = torch.where(too_bold, middle, low), torch.where(too_bold, high, middle)
    return middle.exp()


def temperature_for__never_above_1(logits, perplexity):
    low, high = torch.full((len(logits),), -7.0), torch.full((len(logits),), 0.0)
    for _ in range(30):
        middle = (low + high) / 2
        log_p = (logits / middle.exp()[:, None]).log_softmax(1)
        too_bold = -(log_p.exp() * log_p).sum(1) > math.log(perplexity)
        low, high = torch.where(too_bold, low, middle), torch.where(too_bold, middle, high)
    return middle.exp()


def temperature_for__too_few_steps(logits, perplexity):
    low, high = torch.full((len(logits),), -7.0), torch.full((len(logits),), 7.0)
    for _ in range(6):
        middle = (low + high) / 2
        log_p = (logits / middle.exp()[:, None]).log_softmax(1)
        too_bold = -(log_p.exp() * log_p).sum(1) > math.log(perplexity)
        low, high = torch.where(too_bold, low, middle), torch.where(too_bold, middle, high)
    return middle.exp()


def temperature_for__one_for_all_rows(logits, perplexity):
    low, high = -7.0, 7.0
    for _ in range(30):
        middle = (low + high) / 2
        log_p = (logits / math.exp(middle)).log_softmax(1)
        too_bold = -(log_p.exp() * log_p).sum(1).mean() > math.log(perplexity)
        low, high = (low, middle) if too_bold else (middle, high)
    return torch.full((len(logits),), math.exp(middle))


def temperature_for__nan_where_sure(logits, perplexity):
    low, high = torch.full((len(logits),), -7.0), torch.full((len(logits),), 7.0)
    for _ in range(30):
        middle = (low + high) / 2
        p = (logits / middle.exp()[:, None]).softmax(1)
        too_cold = -(p * p.log()).sum(1) < math.log(perplexity)
        low, high = torch.where(too_cold, middle, low), torch.where(too_cold, high, middle)
    return middle.exp()


def temperature_for__inverse_of_summed_squares(logits, perplexity):
    low, high = torch.full((len(logits),), -7.0), torch.full((len(logits),), 7.0)
    for _ in range(30):
        middle = (low + high) / 2
        p = (logits / middle.exp()[:, None]).softmax(1)
        too_bold = 1 / p.square().sum(1) > perplexity
        low, high = torch.where(too_bold, low, middle), torch.where(too_bold, middle, high)
    return middle.exp()


def temperature_for__the_logarithm(logits, perplexity):
    low, high = torch.full((len(logits),), -7.0), torch.full((len(logits),), 7.0)
    for _ in range(30):
        middle = (low + high) / 2
        log_p = (logits / middle.exp()[:, None]).log_softmax(1)
        too_bold = -(log_p.exp() * log_p).sum(1) > math.log(perplexity)
        low, high = torch.where(too_bold, low, middle), torch.where(too_bold, middle, high)
    return middle


def temperature_for__softmax_over_the_batch(logits, perplexity):
    low, high = torch.full((len(logits),), -7.0), torch.full((len(logits),), 7.0)
    for _ in range(30):
        middle = (low + high) / 2
        log_p = (logits / middle.exp()[:, None]).log_softmax(0)
        too_bold = -(log_p.exp() * log_p).sum(1) > math.log(perplexity)
        low, high = torch.where(too_bold, low, middle), torch.where(too_bold, middle, high)
    return middle.exp()


def typical__the_nucleus(p, mass):
    ordered, order = p.sort(dim=1, descending=True)
    kept = torch.zeros_like(p).scatter(1, order, ordered * (ordered.cumsum(1) - ordered < mass))
    return kept / kept.sum(1, keepdim=True)


def typical__farthest_first(p, mass):
    surprise = -p.log()
    entropy = (p * surprise).sum(1, keepdim=True)
    order = (surprise - entropy).abs().argsort(1, descending=True)
    ordered = p.gather(1, order)
    kept = torch.zeros_like(p).scatter(1, order, ordered * (ordered.cumsum(1) - ordered < mass))
    return kept / kept.sum(1, keepdim=True)


def typical__distance_with_its_sign(p, mass):
    surprise = -p.log()
    entropy = (p * surprise).sum(1, keepdim=True)
    order = (surprise - entropy).argsort(1)
    ordered = p.gather(1, order)
    kept = torch.zeros_like(p).scatter(1, order, ordered * (ordered.cumsum(1) - ordered < mass))
    return kept / kept.sum(1, keepdim=True)


def typical__without_the_crossing_token(p, mass):
    surprise = -p.log()
    entropy = (p * surprise).sum(1, keepdim=True)
    order = (surprise - entropy).abs().argsort(1)
    ordered = p.gather(1, order)
    kept = torch.zeros_like(p).scatter(1, order, ordered * (ordered.cumsum(1) <= mass))
    return kept / kept.sum(1, keepdim=True)


def typical__one_more_at_the_edge(p, mass):
    surprise = -p.log()
    entropy = (p * surprise).sum(1, keepdim=True)
    order = (surprise - entropy).abs().argsort(1)
    ordered = p.gather(1, order)
    kept = torch.zeros_like(p).scatter(1, order, ordered * (ordered.cumsum(1) - ordered <= mass))
    return kept / kept.sum(1, keepdim=True)


def typical__entropy_in_bits(p, mass):
    surprise = -p.log()
    entropy = -(p * p.log2()).sum(1, keepdim=True)
    order = (surprise - entropy).abs().argsort(1)
    ordered = p.gather(1, order)
    kept = torch.zeros_like(p).scatter(1, order, ordered * (ordered.cumsum(1) - ordered < mass))
    return kept / kept.sum(1, keepdim=True)


def typical__mean_surprise_without_weights(p, mass):
    surprise = -p.log()
    order = (surprise - surprise.mean(1, keepdim=True)).abs().argsort(1)
    ordered = p.gather(1, order)
    kept = torch.zeros_like(p).scatter(1, order, ordered * (ordered.cumsum(1) - ordered < mass))
    return kept / kept.sum(1, keepdim=True)


def typical__one_entropy_for_all_rows(p, mass):
    surprise = -p.log()
    entropy = (p * surprise).sum(1).mean()
    order = (surprise - entropy).abs().argsort(1)
    ordered = p.gather(1, order)
    kept = torch.zeros_like(p).scatter(1, order, ordered * (ordered.cumsum(1) - ordered < mass))
    return kept / kept.sum(1, keepdim=True)


def typical__left_in_sorted_order(p, mass):
    surprise = -p.log()
    entropy = (p * surprise).sum(1, keepdim=True)
    ordered = p.gather(1, (surprise - entropy).abs().argsort(1))
    kept = ordered * (ordered.cumsum(1) - ordered < mass)
    return kept / kept.sum(1, keepdim=True)


def typical__not_rescaled(p, mass):
    surprise = -p.log()
    entropy = (p * surprise).sum(1, keepdim=True)
    order = (surprise - entropy).abs().argsort(1)
    ordered = p.gather(1, order)
    return torch.zeros_like(p).scatter(1, order, ordered * (ordered.cumsum(1) - ordered < mass))


def typical__all_that_are_nearer_than_the_mass(p, mass):
    surprise = -p.log()
    entropy = (p * surprise).sum(1, keepdim=True)
    kept = p * ((surprise - entropy).abs() < mass)
    return kept / kept.sum(1, keepdim=True)


def accept__every_guess(p, q, guess, generator):
    return guess.clone()


def accept__ignores_the_guess(p, q, guess, generator):
    return torch.multinomial(p, 1, generator=generator)[:, 0]


def accept__draws_anew_from_p(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = torch.rand(len(guess), generator=generator) < p[row, guess] / q[row, guess]
    return torch.where(kept, guess, torch.multinomial(p, 1, generator=generator)[:, 0])


def accept__ratio_inverted(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = torch.rand(len(guess), generator=generator) * p[row, guess] < q[row, guess]
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, p)
    return torch.where(kept, guess, torch.multinomial(rest, 1, generator=generator)[:, 0])


def accept__keeps_with_probability_p(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = torch.rand(len(guess), generator=generator) < p[row, guess]
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, p)
    return torch.where(kept, guess, torch.multinomial(rest, 1, generator=generator)[:, 0])


def accept__keeps_where_p_is_larger(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = p[row, guess] >= q[row, guess]
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, p)
    return torch.where(kept, guess, torch.multinomial(rest, 1, generator=generator)[:, 0])


def accept__difference_without_sign(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = torch.rand(len(guess), generator=generator) < p[row, guess] / q[row, guess]
    rest = (p - q).abs()
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, p)
    return torch.where(kept, guess, torch.multinomial(rest, 1, generator=generator)[:, 0])


def accept__what_q_gives_too_much(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = torch.rand(len(guess), generator=generator) < p[row, guess] / q[row, guess]
    rest = (q - p).clamp(min=0)
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, p)
    return torch.where(kept, guess, torch.multinomial(rest, 1, generator=generator)[:, 0])


def accept__fails_where_p_equals_q(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = torch.rand(len(guess), generator=generator) < p[row, guess] / q[row, guess]
    rest = (p - q).clamp(min=0)
    return torch.where(kept, guess, torch.multinomial(rest, 1, generator=generator)[:, 0])


def accept__one_chance_for_all_rows(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = torch.rand(1, generator=generator) < p[row, guess] / q[row, guess]
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, p)
    return torch.where(kept, guess, torch.multinomial(rest, 1, generator=generator)[:, 0])


def accept__ignores_the_generator(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = torch.rand(len(guess)) < p[row, guess] / q[row, guess]
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, p)
    return torch.where(kept, guess, torch.multinomial(rest, 1)[:, 0])


def accept__likeliest_of_the_rest(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = torch.rand(len(guess), generator=generator) < p[row, guess] / q[row, guess]
    return torch.where(kept, guess, (p - q).argmax(1))


def accept__changes_p(p, q, guess, generator):
    row = torch.arange(len(guess))
    kept = torch.rand(len(guess), generator=generator) < p[row, guess] / q[row, guess]
    rest = p.sub_(q).clamp(min=0)
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, q)
    return torch.where(kept, guess, torch.multinomial(rest, 1, generator=generator)[:, 0])


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


def fill_in__overwrites_the_known(known, predict, pick):
    tokens = known.clone()
    for place in range(known.shape[1]):
        if (known[:, place] == -1).any():
            tokens[:, place] = pick(predict(tokens[:, :place]))
    return tokens


def fill_in__only_where_no_row_knows(known, predict, pick):
    tokens = known.clone()
    for place in range(known.shape[1]):
        if (known[:, place] == -1).all():
            tokens[:, place] = pick(predict(tokens[:, :place]))
    return tokens


def fill_in__known_tokens_first(known, predict, pick):
    tokens = known.clone()
    start = int((known == -1).any(0).float().argmax())
    for place in range(start, known.shape[1]):
        tokens[:, place] = pick(predict(tokens[:, :place]))
    return tokens


def fill_in__reads_the_holes(known, predict, pick):
    tokens = known.clone()
    for place in range(known.shape[1]):
        unknown = known[:, place] == -1
        if unknown.any():
            picked = pick(predict(known[:, :place]))
            tokens[:, place] = torch.where(unknown, picked, tokens[:, place])
    return tokens


def fill_in__holes_are_token_0(known, predict, pick):
    tokens = known.clone()
    for place in range(known.shape[1]):
        unknown = known[:, place] == -1
        if unknown.any():
            picked = pick(predict(known[:, :place].clamp(min=0)))
            tokens[:, place] = torch.where(unknown, picked, tokens[:, place])
    return tokens


def fill_in__predicts_every_place(known, predict, pick):
    tokens = known.clone()
    for place in range(known.shape[1]):
        picked = pick(predict(tokens[:, :place]))
        tokens[:, place] = torch.where(known[:, place] == -1, picked, tokens[:, place])
    return tokens


def fill_in__reads_the_last_token_only(known, predict, pick):
    tokens = known.clone()
    for place in range(known.shape[1]):
        unknown = known[:, place] == -1
        if unknown.any():
            picked = pick(predict(tokens[:, max(place - 1, 0) : place]))
            tokens[:, place] = torch.where(unknown, picked, tokens[:, place])
    return tokens


def fill_in__one_place_late(known, predict, pick):
    tokens = known.clone()
    for place in range(known.shape[1]):
        unknown = known[:, place] == -1
        if unknown.any():
            picked = pick(predict(tokens[:, : max(place - 1, 0)]))
            tokens[:, place] = torch.where(unknown, picked, tokens[:, place])
    return tokens


def fill_in__row_by_row(known, predict, pick):
    tokens = known.clone()
    for row in range(len(known)):
        for place in range(known.shape[1]):
            if known[row, place] == -1:
                tokens[row, place] = pick(predict(tokens[row : row + 1, :place]))[0]
    return tokens


def fill_in__changes_known(known, predict, pick):
    for place in range(known.shape[1]):
        unknown = known[:, place] == -1
        if unknown.any():
            picked = pick(predict(known[:, :place]))
            known[:, place] = torch.where(unknown, picked, known[:, place])
    return known


def fill_in__known_and_picked_swapped(known, predict, pick):
    tokens = known.clone()
    for place in range(known.shape[1]):
        unknown = known[:, place] == -1
        if unknown.any():
            picked = pick(predict(tokens[:, :place].clamp(min=0)))
            tokens[:, place] = torch.where(unknown, tokens[:, place], picked)
    return tokens
