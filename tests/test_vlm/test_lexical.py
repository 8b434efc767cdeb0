"""The words' share in routing: hashing, learning, and the state of an untrained table."""

import random

import torch

from vlm.heads.lexical import BUCKETS, Lexical, buckets, fit

WORDS = {
    0: ("how many", "number of", "count the"),
    1: ("how long", "length of", "longest diameter"),
    2: ("where", "site"),
}


def asked(count, seed):
    """Texts and the number of their fact; the structure named says nothing."""
    draw = random.Random(seed)
    facts = [draw.randrange(3) for _ in range(count)]
    things = ("tumour", "nodes", "left kidney", "masses in the liver", "larynx")
    return [f"{draw.choice(WORDS[fact])} {draw.choice(things)}" for fact in facts], facts


def test_buckets_see_words_not_case_or_punctuation():
    assert buckets("How MANY tumours?") == buckets("how many, tumours")
    assert buckets("many tumours how") != buckets("how many tumours")  # order, by the pairs of words
    assert set(buckets("tumour")) & set(buckets("tumours"))  # letters in common
    assert buckets("") == buckets("?!") == []
    assert all(0 <= bucket < BUCKETS for bucket in buckets("Which side is the RECIST target on?"))


def test_texts_without_words_get_the_bias_alone():
    lexical = Lexical(3)
    with torch.no_grad():
        lexical.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
        lexical.table.weight.normal_()
    assert lexical(["?", ""]).tolist() == [[1.0, 2.0, 3.0]] * 2
    assert lexical([]).shape == (0, 3)
    assert torch.allclose(
        lexical(["how many", "?", "where"])[[0, 2]], lexical(["how many", "where"])
    )  # each its own bag


def test_it_learns_which_words_ask_for_what():
    lexical = Lexical(3)
    fit(lexical, *asked(400, 0), epochs=8)
    texts, facts = asked(100, 1)
    assert (lexical(texts).argmax(1) == torch.tensor(facts)).float().mean() > 0.97
    assert lexical(["pls count the lymph nodes", "the length of it"]).argmax(1).tolist() == [0, 1]


def test_the_same_seed_learns_the_same():
    first, second = Lexical(3), Lexical(3)
    for lexical in (first, second):
        fit(lexical, *asked(50, 0), seed=4)
    assert torch.equal(first.table.weight, second.table.weight)
