"""Which words ask for which fact, learnt from many freshly worded questions about invented scenes (lexical.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from random import Random

import torch

from seg_backbone.io import replacing
from vlm.data.wordings import Wordings
from vlm.heads.lexical import Lexical, fit
from vlm.model import VisionLanguageModel
from vlm.train.config import StageConfig
from vlm.train.examples import Example, invent, questions_about

A_SCENE = 24  # questions about one invented scene


def learn_words(
    config: StageConfig,
    model: VisionLanguageModel,
    train: list[Example],
    wordings: Wordings,
    resume: bool,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Give `model` a lexical reader of its facts, learnt from `config.lexical` questions, and keep it fixed.

    It lies in `config.output`/words.pt, from where a resumed run takes it.
    """
    facts, kept = model.config.facts, config.output / "words.pt"
    lexical = Lexical(len(facts))
    if resume and kept.is_file():
        lexical.load_state_dict(torch.load(kept, weights_only=True))
    else:
        texts: list[str] = []
        wanted: list[int] = []
        scene = 0
        pool = [example for example in train if not example.asked]
        while pool and len(texts) < config.lexical:
            random = Random(f"{config.seed}/words/{scene}")
            example = replace(invent(pool, wordings.extra_names, random), told=random.choice(pool).told)
            for question in questions_about(example, wordings, random, A_SCENE, "train"):
                if question.extra["fact"] in facts:
                    texts.append(question.question)
                    wanted.append(facts.index(question.extra["fact"]))
            scene += 1
            if progress:
                progress("wording questions", min(len(texts), config.lexical), config.lexical)
        shown = partial(progress, "learning words") if progress else None
        fit(lexical, texts, wanted, seed=config.seed, progress=shown)
        with replacing(kept) as temporary:
            torch.save(lexical.state_dict(), temporary)
    device = next(model.router.parameters()).device
    model.config = replace(model.config, lexical=True)
    model.lexical = lexical.to(device).requires_grad_(False)
