"""Words of a question -> which fact it asks for: a linear classifier of hashed n-grams, beside the router.

The language model reads a sentence as a whole, but few of them while it is trained; this reads only the words and the
letters in them, but tens of thousands of sentences in a minute. The two err on different wordings, so their
probabilities are multiplied (a product of experts).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

BUCKETS = 2**15
WORDS, LETTERS = (1, 2, 3), (3, 4, 5)  # lengths of the n-grams
TOKEN = re.compile(r"[^\W_]+|[<>=%]")
DROPPED = 0.3  # share of a sentence's n-grams that a training step does not see
RATE, BATCH = 0.02, 256


class Lexical(nn.Module):
    """Q texts -> (Q, facts) logits, in the order of the facts that the checkpoint knows."""

    def __init__(self, facts: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(BUCKETS, facts, mode="sum")
        self.bias = nn.Parameter(torch.zeros(facts))
        nn.init.zeros_(self.table.weight)

    def forward(self, texts: Sequence[str]) -> torch.Tensor:
        return self.logits([torch.tensor(buckets(text)) for text in texts])

    def logits(self, bags: Sequence[torch.Tensor]) -> torch.Tensor:
        """The same for bags of buckets (n,) int64; each bag has length one in the space of n-grams."""
        sizes = torch.tensor([len(bag) for bag in bags], dtype=torch.long)
        device = self.bias.device
        weights = sizes.clamp(min=1).rsqrt().repeat_interleave(sizes)
        starts = sizes.cumsum(0) - sizes
        ids = torch.cat(list(bags)).long() if len(bags) else torch.zeros(0, dtype=torch.long)
        return self.table(ids.to(device), starts.to(device), weights.to(device)) + self.bias


def buckets(text: str) -> list[int]:
    """The different hashed n-grams of words, and of letters within words, of a text; empty for one without any."""
    words = TOKEN.findall(text.lower())
    grams = {" ".join(words[n : n + size]) for size in WORDS for n in range(len(words) - size + 1)}
    for padded in (f"\t{word}\t" for word in set(words)):
        grams |= {padded[n : n + size] + "\n" for size in LETTERS for n in range(len(padded) - size + 1)}
    return sorted({zlib.crc32(gram.encode()) % BUCKETS for gram in grams})


def fit(
    lexical: Lexical,
    texts: Sequence[str],
    facts: Sequence[int],
    epochs: int = 4,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Learn from texts and the number of the fact that each asks for. Returns the share right in the last epoch, as
    seen while learning; NaN without texts."""
    bags = [torch.tensor(buckets(text)) for text in texts]
    wanted = torch.tensor(list(facts))
    optimizer = torch.optim.Adam(lexical.parameters(), RATE)
    random = torch.Generator().manual_seed(seed)
    right = float("nan")
    steps = epochs * -(-len(bags) // BATCH)
    done = 0
    for _ in range(epochs if bags else 0):
        hits = 0
        for chosen in torch.randperm(len(bags), generator=random).split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - done / steps)
            kept = [bags[n][torch.rand(len(bags[n]), generator=random) >= DROPPED] for n in chosen.tolist()]
            logits = lexical.logits(kept)
            optimizer.zero_grad()
            F.cross_entropy(logits, wanted[chosen]).backward()
            optimizer.step()
            hits += int((logits.argmax(1) == wanted[chosen]).sum())
            done += 1
            if progress:
                progress(done, steps)
        right = hits / len(bags)
    return right
