"""Wrong answers to assignment 8, each with the mistake in its name: `patient__mistake`."""


def patient_1__unrepaired():
    return 80, "z[:, i] = p.argmax(-1)"


def patient_1__blind():
    return 80, "z[:, i] = torch.randint(K, (len(text),))"


def patient_1__second_best():
    return 80, "z[:, i] = p.topk(2).indices[:, 1]"


def patient_1__another_line():
    return 26, "return error + 0.002 * kl.mean()"


def patient_1__no_line():
    return 80


def patient_2__unrepaired():
    return 26, "return error + 0.002 * kl.sum()"


def patient_2__sum_of_cells():
    return 26, "return error + 0.002 * kl.sum((1, 2)).mean()"


def patient_2__sign_turned():
    return 26, "return error - 0.002 * kl.mean()"


def patient_2__another_line():
    return 48, "may_see = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()"


def patient_2__no_line():
    return 26


def patient_3__unrepaired():
    return 48, "may_see = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(1)"


def patient_3__blind_to_itself():
    return 48, "may_see = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril(-1)"


def patient_3__looks_ahead_only():
    return 48, "may_see = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu()"


def patient_3__another_line():
    return 92, "z, new_z = [dvae.tokens(x).flatten(1) for x in (images, new_images)]"


def patient_3__no_line():
    return 48


def patient_4__unrepaired():
    return 92, "z, new_z = [dvae.tokens(x / 255).flatten(1) for x in (images, new_images)]"


def patient_4__times_255():
    return 92, "z, new_z = [dvae.tokens(255 * x).flatten(1) for x in (images, new_images)]"


def patient_4__minus_one_to_one():
    return 92, "z, new_z = [dvae.tokens(2 * x - 1).flatten(1) for x in (images, new_images)]"


def patient_4__another_line():
    return 81, "return z.view(-1, G, G)"


def patient_4__no_line():
    return 92


def patient_5__unrepaired():
    return 81, "return z.view(-1, G, G).mT"


def patient_5__upside_down():
    return 81, "return z.view(-1, G, G).flip(1)"


def patient_5__batch_in_the_middle():
    return 81, "return z.view(G, -1, G).transpose(0, 1)"


def patient_5__another_line():
    return 100, "loss = prior.loss(text[batch], z[batch])"


def patient_5__no_line():
    return 81


def patient_6__unrepaired():
    return 100, "loss = prior.loss(text[torch.randint(len(text), (BATCH,))], z[batch])"


def patient_6__in_the_order_of_the_set():
    return 100, "loss = prior.loss(text[:BATCH], z[batch])"


def patient_6__one_further():
    return 100, "loss = prior.loss(text[batch].roll(1, 0), z[batch])"


def patient_6__another_line():
    return 22, "y = ((logits + noise) / tau).softmax(1)"


def patient_6__no_line():
    return 100


def patient_7__unrepaired():
    return 22, "y = (logits / tau).softmax(1)"


def patient_7__times_tau():
    return 22, "y = ((logits + noise) * tau).softmax(1)"


def patient_7__noise_not_divided():
    return 22, "y = (logits / tau + noise).softmax(1)"


def patient_7__another_line():
    return 96, "batch = torch.randint(len(images), (BATCH,))"


def patient_7__no_line():
    return 22


def patient_8__unrepaired():
    return 96, "batch = torch.arange(BATCH)"


def patient_8__the_same_in_another_order():
    return 96, "batch = torch.randperm(BATCH)"


def patient_8__among_the_first():
    return 96, "batch = torch.randint(BATCH, (BATCH,))"


def patient_8__another_line():
    return 68, "image = image + self.row(cell // G) + self.column(cell % G)"


def patient_8__no_line():
    return 96


def patient_9__unrepaired():
    return 68, "image = image + self.row(cell // G) + self.column(cell // G)"


def patient_9__no_row():
    return 68, "image = image + self.row(cell % G) + self.column(cell % G)"


def patient_9__no_place():
    return 68, "image = image + self.row(0 * cell) + self.column(0 * cell)"


def patient_9__another_line():
    return 33, "return self.decoder(codes).sigmoid()"


def patient_9__no_line():
    return 68


def patient_10__unrepaired():
    return 33, "return self.decoder(codes)"


def patient_10__tanh():
    return 33, "return self.decoder(codes).tanh()"


def patient_10__inside():
    return 33, "return self.decoder(codes.sigmoid())"


def patient_10__another_line():
    return 80, "z[:, i] = p.multinomial(1).squeeze(1)"


def patient_10__no_line():
    return 33
