"""Records as public data sets have them, and the texts that are taken out of each."""

MS_MARCO = {
    "query": "what is a corporation?",
    "query_id": 1102432,
    "query_type": "DESCRIPTION",
    "answers": ["A corporation is a company."],
    "wellFormedAnswers": [],
    "passages": {
        "is_selected": [0, 1, 0],
        "passage_text": ["Approximately two hours.", "A corporation is a company.", "Other."],
        "url": ["a", "b", "c"],
    },
}
HOTPOTQA = {
    "id": "5a7a06935542990198eaf050",
    "question": "Which magazine was started first?",
    "answer": "Arthur's Magazine",
    "type": "comparison",
    "supporting_facts": {"title": ["Arthur's Magazine", "First for Women"], "sent_id": [0, 0]},
    "context": {
        "title": ["Radio City", "Arthur's Magazine", "First for Women"],
        "sentences": [
            ["Radio City is a station.", " It plays songs."],
            ["Arthur's Magazine was a periodical."],
            ["First for Women is a magazine."],
        ],
    },
}
ARTHUR = "Arthur's Magazine Arthur's Magazine was a periodical."
WOMEN = "First for Women First for Women is a magazine."
RADIO = "Radio City Radio City is a station. It plays songs."
DOG = "A dog runs."


def nli(hypothesis, label, premise=DOG):
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def esci(title, label, locale="us"):
    return {
        "query": "usb cable", "query_id": 7, "product_locale": locale, "esci_label": label,
        "product_title": title,
    }  # fmt: skip


PER_RECORD_CASES = [
    ("ms_marco_pairs", MS_MARCO, [(MS_MARCO["query"], "A corporation is a company.")]),
    (
        "ms_marco_triplets",
        MS_MARCO,
        [
            (MS_MARCO["query"], "A corporation is a company.", "Approximately two hours."),
            (MS_MARCO["query"], "A corporation is a company.", "Other."),
        ],
    ),
    ("hotpotqa_pairs", HOTPOTQA, [(HOTPOTQA["question"], ARTHUR), (HOTPOTQA["question"], WOMEN)]),
    (
        "hotpotqa_triplets",
        HOTPOTQA,
        [(HOTPOTQA["question"], ARTHUR, RADIO), (HOTPOTQA["question"], WOMEN, RADIO)],
    ),
    (
        "answer_list",
        {"question": "when was the last man on the moon", "answer": ["14 December 1972", "1972"]},
        [
            ("when was the last man on the moon", "14 December 1972"),
            ("when was the last man on the moon", "1972"),
        ],
    ),
    (
        "triviaqa_pairs",
        {"question": "Who won?", "answer": {"value": "Sinclair Lewis", "aliases": ["Lewis"]}},
        [("Who won?", "Sinclair Lewis")],
    ),
    (
        "duplicate_questions",
        {"question1": "How do I learn?", "question2": "How to learn?", "label": 1, "idx": 0},
        [("How do I learn?", "How to learn?")],
    ),
    ("duplicate_questions", {"question1": "a", "question2": "b", "label": 0, "idx": 1}, []),
    (
        "stack_exchange_votes",
        {"title_body": "Why? Because.", "upvoted_answer": "yes", "downvoted_answer": "no"},
        [("Why? Because.", "yes", "no")],
    ),
    (
        "wikisplit",
        "He plays , and she sings .\tHe plays . <::::> She sings .",
        [("He plays , and she sings .", "He plays . She sings .")],
    ),
    (
        "sts_pairs",
        'captions\tMSRvid\t2012test\t0001\t5.000\tA "plane" takes off.\tAn air plane takes off.',
        [('A "plane" takes off.', "An air plane takes off.")],
    ),
    ("sts_pairs", "main\tf\t2012\t1\t3.999\ta\tb\tlicence\tmore", []),
    ("sts_pairs", "main\tf\t2012\t1\t4.000\ta\tb\tlicence\tmore", [("a", "b")]),
    ("nli_pairs", nli("An animal moves.", 0), [(DOG, "An animal moves.")]),
    ("nli_pairs", nli("It sleeps.", 2), []),
    ("nli_reversed", nli("An animal moves.", 0), [("An animal moves.", DOG)]),
    ("nli_pairs", nli("An animal moves.", "entailment"), [(DOG, "An animal moves.")]),
    ("esci_pairs", esci("USB-C cable", "Exact"), [("usb cable", "USB-C cable")]),
    ("esci_pairs", esci("USB-C cable", "E"), [("usb cable", "USB-C cable")]),
    ("esci_pairs", esci("hub", "Substitute"), []),
    ("esci_pairs", esci("cable", "Exact", "es"), []),
    ("embedding_texts", ["is toprol xl?", "Yes."], [("is toprol xl?", "Yes.")]),
    ("embedding_texts", ["anchor", "positive", "negative"], [("anchor", "positive", "negative")]),
    ("embedding_texts", {"texts": ["title", "body"]}, [("title", "body")]),
    ("embedding_texts", {"set": ["a", "b", "c"]}, [("a", "b"), ("a", "c")]),
    ("embedding_texts", {"query": "q", "pos": ["a", "b"]}, [("q", "a"), ("q", "b")]),
    (
        "embedding_texts",
        {"query": "q", "pos": ["a"], "neg": ["x", "y"]},
        [("q", "a", "x"), ("q", "a", "y")],
    ),
    (
        "embedding_texts",
        {"query": "q", "pos": ["a", "b", "c"], "neg": ["x", "y"]},
        [("q", p, n) for p in "abc" for n in "xy"],
    ),
    ("embedding_texts", {"query": "q", "pos": ["a"], "neg": []}, [("q", "a")]),
]  # fmt: skip

TRIVIA = [
    "#Q Which animal says", "  this very rhyme?\r", "^ The cat", "A The dog", "B The cat",
]  # fmt: skip
GROUPED_CASES = [
    (
        "nli_triplets",
        [nli("yes", 0), nli("maybe", 1), nli("no", 2), nli("never", 2), nli("unsure", -1)],
        [(DOG, "yes", "no"), (DOG, "yes", "never")],
    ),
    (
        "nli_triplets",
        [nli("yes", "entailment"), nli("also", "entailment"), nli("no", "contradiction")],
        [(DOG, "yes", "no"), (DOG, "also", "no")],
    ),
    ("nli_triplets", [nli("yes", 0), nli("maybe", 1)], []),
    (
        "esci_triplets",
        [esci("cable", "Exact"), esci("pen", "Irrelevant"), esci("stylo", "Irrelevant", "es")],
        [("usb cable", "cable", "pen")],
    ),
    ("opentrivia", TRIVIA, [("Which animal says this very rhyme?", "The cat")]),
]
