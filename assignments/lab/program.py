"""The healthy program of the debugging lab: a DALL-E of two stages in one short file.

B images or captions in a batch, K codes, g cells a side, D width, H heads, T states.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from minidalle.data import shapes

SHAPES, COLOURS = ("triangle", "heart", "circle", "cross"), ("red", "yellow", "green", "blue")
GROUNDS = ("white", "black")
WORDS = {word: i for i, word in enumerate((*SHAPES, *COLOURS, *GROUNDS))}
PLACES = ("top left", "top right", "bottom left", "bottom right")  # no caption says them
K, G, D, H = 64, 4, 64, 4
UPDATES, BATCH = 600, 32


def draw_world(n, seed):
    """Return n images (n, 3, 16, 16) in [0, 1], and captions of three words (n, 3)."""
    g = torch.Generator().manual_seed(seed)
    pick = [torch.randint(4, (n,), generator=g).tolist() for _ in range(4)]
    scenes = [
        {"colour": COLOURS[c], "shape": SHAPES[s], "size": "large", "position": PLACES[p],
         "background": GROUNDS[b % 2]}
        for c, s, p, b in zip(*pick, strict=True)
    ]  # fmt: skip
    text = [[WORDS[scene[k]] for k in ("colour", "shape", "background")] for scene in scenes]
    return F.avg_pool2d(shapes.render(scenes).float() / 255, 2), torch.tensor(text)


class DVAE(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, width, 4, 2, 1),
            nn.ReLU(),
            nn.Conv2d(width, K, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(K, width, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1),
        )

    def loss(self, images, tau):
        logits = self.encoder(images)  # (B, K, g, g)
        noise = -torch.empty_like(logits).exponential_().log()
        y = ((logits + noise) / tau).softmax(1)
        error = (self.decoder(y).sigmoid() - images).square().mean()
        log_q = logits.log_softmax(1)
        kl = (log_q.exp() * (log_q + math.log(K))).sum(1)  # (B, g, g)
        return error + 0.002 * kl.mean()

    def tokens(self, images):
        return self.encoder(images).argmax(1)  # (B, g, g)

    def decode(self, tokens):
        codes = F.one_hot(tokens, K).permute(0, 3, 1, 2).float()  # (B, K, g, g)
        return self.decoder(codes).sigmoid()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(D), nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.mlp = nn.Sequential(
            nn.LayerNorm(D), nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D)
        )

    def forward(self, x):  # (B, T, D)
        heads = self.qkv(self.norm(x)).unflatten(2, (3, H, D // H))  # (B, T, 3, H, D/H)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # three times (B, H, T, D/H)
        scores = q @ k.transpose(2, 3) / math.sqrt(D // H)
        may_see = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        weights = scores.masked_fill(~may_see, -math.inf).softmax(-1)  # (B, H, T, T)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class Prior(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.codes = nn.Embedding(len(WORDS), D), nn.Embedding(K, D)
        self.place, self.start = nn.Embedding(3, D), nn.Parameter(torch.zeros(D))
        self.row, self.column = nn.Embedding(G, D), nn.Embedding(G, D)
        self.blocks = nn.Sequential(Block(), Block(), nn.LayerNorm(D))
        self.head = nn.Linear(D, K)

    def forward(self, text, z):  # (B, 3), (B, g*g)
        words = self.words(text) + self.place.weight  # (B, 3, D)
        start = self.start.expand(len(z), 1, D)
        image = torch.cat([start, self.codes(z[:, :-1])], 1)  # (B, g*g, D): one cell behind
        cell = torch.arange(G * G)
        image = image + self.row(cell // G) + self.column(cell % G)
        states = self.blocks(torch.cat([words, image], 1))  # (B, 3 + g*g, D)
        return self.head(states[:, 3:])  # (B, g*g, K)

    def loss(self, text, z):
        return F.cross_entropy(self(text, z).flatten(0, 1), z.flatten())

    @torch.no_grad()
    def sample(self, text):
        z = torch.zeros(len(text), G * G, dtype=torch.int64)
        for i in range(G * G):
            p = self(text, z)[:, i].softmax(-1)  # (B, K)
            z[:, i] = p.multinomial(1).squeeze(1)
        return z.view(-1, G, G)


def train(seed=0, updates=UPDATES):
    torch.manual_seed(seed)
    images, text = draw_world(500, seed=0)
    new_images, new_text = draw_world(200, seed=1)
    dvae, prior, curves = DVAE(), Prior(), {"dvae": [], "prior": [], "new": []}
    for stage, rate in ((dvae, 0.01), (prior, 0.003)):
        optimizer = torch.optim.AdamW(stage.parameters())
        with torch.no_grad():
            z, new_z = [dvae.tokens(x).flatten(1) for x in (images, new_images)]
        for step in range(updates):
            progress = step / updates
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
            batch = torch.randint(len(images), (BATCH,))
            if stage is dvae:
                loss = dvae.loss(images[batch], tau=1 - 0.75 * progress)
            else:
                loss = prior.loss(text[batch], z[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curves["dvae" if stage is dvae else "prior"].append(loss.item())
            if stage is prior and step % 20 == 0:
                with torch.no_grad():
                    curves["new"].append(prior.loss(new_text, new_z).item())
    return dvae, prior, curves
