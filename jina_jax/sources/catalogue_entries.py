"""The entries of the catalogue, by family."""

from jina_jax.config import SourceConfig
from jina_jax.sources.catalogue_entry import (
    HUB,
    CatalogueEntry,
    collection_file,
    hub_records,
    hub_table,
)

_PAIR, _SET = "[text, text]", '{"set": [text, ...]}'
_POS = '{"query": text, "pos": [text, ...]}'
_NEG = '{"query": text, "pos": [text, ...], "neg": [text, ...]}'
_MS_MARCO_LICENCE = "non-commercial research only (MS MARCO terms)"
_MS_MARCO = '{"query": text, "passages": {"passage_text": [text, ...], "is_selected": [0 or 1]}}'
_HOTPOTQA = (
    '{"question": text, "supporting_facts": {"title": [text]}, '
    '"context": {"title": [text], "sentences": [[text]]}}'
)
_NLI = '{"premise": text, "hypothesis": text, "label": 0, 1, 2 or -1}'
_ESCI = '{"query": text, "product_title": text, "product_locale": "us", "esci_label": "Exact"}'

_SEARCH = (
    hub_records(
        "ms_marco", "web search", "microsoft/ms_marco", "v2.1", "ms_marco_pairs", _MS_MARCO,
        _MS_MARCO_LICENCE, note="Also at TFDS as ms_marco/v2.1.",
    ),
    hub_records(
        "ms_marco_triplets", "web search", "microsoft/ms_marco", "v2.1", "ms_marco_triplets",
        _MS_MARCO, _MS_MARCO_LICENCE, "triplets",
        note="Negatives are passages shown to annotators and not selected; some do answer: the "
        "margin filter is for them.",
    ),
    collection_file(
        "ms_marco_mined", "web search", "msmarco-triplets.jsonl.gz", _NEG, _MS_MARCO_LICENCE,
        "triplets", "Negatives mined with dense and lexical retrievers.",
    ),
    hub_table(
        "ms_marco_bm25", "web search", "sentence-transformers/msmarco-bm25", "triplet",
        ("query", "positive", "negative"), _MS_MARCO_LICENCE, "Negatives from BM25.",
    ),
)  # fmt: skip

_QUESTIONS = (
    hub_table(
        "natural_questions", "question answering", "sentence-transformers/natural-questions",
        "pair", ("query", "answer"), "CC BY-SA 3.0 (Natural Questions)",
    ),
    CatalogueEntry(
        "question answering",
        SourceConfig(
            "nq_open", "jsonl", ("nq_open/*.jsonl",), extractor="answer_list",
            licence="CC BY-SA 3.0",
        ),
        "https://github.com/google-research-datasets/natural-questions/tree/master/nq_open",
        '{"question": text, "answer": [text, ...]}',
    ),
    hub_records(
        "hotpotqa", "question answering", "hotpotqa/hotpot_qa", "distractor", "hotpotqa_pairs",
        _HOTPOTQA, "CC BY-SA 4.0",
    ),
    hub_records(
        "hotpotqa_triplets", "question answering", "hotpotqa/hotpot_qa", "distractor",
        "hotpotqa_triplets", _HOTPOTQA, "CC BY-SA 4.0", "triplets",
    ),
    collection_file(
        "fever", "question answering", "fever_train.jsonl.gz", "one of the collection's five",
        "CC BY-SA 4.0 (card of BeIR/fever)",
        note="Which of the five shapes its lines have was not verified; all are read.",
    ),
    hub_table(
        "squad", "question answering", "rajpurkar/squad", "plain_text", ("question", "context"),
        note="The query is the question, the positive the paragraph that answers it. The card of "
        "rajpurkar/squad_v2 says CC BY-SA 4.0.",
    ),
    hub_records(
        "triviaqa", "question answering", "mandarjoshi/trivia_qa", "rc.nocontext",
        "triviaqa_pairs", '{"question": text, "answer": {"value": text, ...}}',
    ),
    hub_table(
        "gooaq", "question answering", "sentence-transformers/gooaq", "pair",
        ("question", "answer"), "Apache-2.0 (card of allenai/gooaq)",
    ),
    collection_file("eli5", "question answering", "eli5_question_answer.jsonl.gz", _PAIR),
    collection_file(
        "paq", "question answering", "PAQ_pairs.jsonl.gz", _PAIR, "MIT (card of PAQ_pairs)",
    ),
    collection_file("searchqa", "question answering", "searchQA_top5_snippets.jsonl.gz", _POS),
    collection_file(
        "yahoo_answers", "question answering", "yahoo_answers_title_answer.jsonl.gz", _PAIR,
    ),
    CatalogueEntry(
        "question answering",
        SourceConfig(
            "stack_exchange_votes", "jsonl", ("stack_exchange_votes/*.jsonl.gz",),
            extractor="stack_exchange_votes", negative_field="negative",
            licence="CC BY-SA (Stack Exchange)",
        ),
        f"{HUB}flax-sentence-embeddings/"
        "stackexchange_titlebody_best_and_down_voted_answer_jsonl",
        '{"title_body": text, "upvoted_answer": text, "downvoted_answer": text}',
        "triplets",
    ),
    CatalogueEntry(
        "question answering",
        SourceConfig(
            "opentrivia", "text", ("opentrivia/categories/*",), extractor="opentrivia",
            licence="CC BY-SA 4.0",
        ),
        "https://github.com/uberspot/OpenTriviaQA",
        "lines `#Q question`, `^ answer`, `A choice`, ...",
    ),
)  # fmt: skip

_DUPLICATES = (
    collection_file("wikianswers", "duplicate questions", "WikiAnswers.jsonl.gz", _SET),
    hub_table(
        "stack_exchange_duplicates", "duplicate questions",
        "sentence-transformers/stackexchange-duplicates", "title-title-pair",
        ("title1", "title2"), "CC BY-SA (Stack Exchange)",
    ),
    hub_records(
        "quora", "duplicate questions", "nyu-mll/glue", "qqp", "duplicate_questions",
        '{"question1": text, "question2": text, "label": 0 or 1}',
        note="Also at TFDS as glue/qqp.",
    ),
    collection_file(
        "quora_triplets", "duplicate questions", "quora_duplicates_triplets.jsonl.gz", _NEG,
        holds="triplets",
    ),
)  # fmt: skip

_SHOPPING = (
    hub_table(
        "amazon_qa", "e-commerce", "sentence-transformers/amazon-qa", "pair",
        ("query", "answer"), "MIT (card of embedding-data/Amazon-QA)",
    ),
    collection_file("amazon_reviews", "e-commerce", "amazon_review_2018.jsonl.gz", _PAIR),
    hub_records(
        "shopping_queries", "e-commerce", "tasksource/esci", "", "esci_pairs", _ESCI, "Apache-2.0",
    ),
    hub_records(
        "shopping_queries_triplets", "e-commerce", "tasksource/esci", "", "esci_triplets", _ESCI,
        "Apache-2.0", "triplets", "Products of a query judged Exact against Irrelevant.",
    ),
)  # fmt: skip

_ARTICLES = (
    CatalogueEntry(
        "title and body",
        SourceConfig(
            "reddit", "jsonl", ("reddit-title-body/reddit_title_text_*.jsonl.gz",),
            query_field="title", positive_field="body",
        ),
        f"{HUB}sentence-transformers/reddit-title-body",
        '{"title": text, "body": text, "subreddit": text}',
        note="In the paper's ablation the consistency filter removes 84.313 % of Reddit, the "
        "language filter 17.4 %; that its Reddit is this one is not said.",
        in_paper=True,
    ),
    CatalogueEntry(
        "title and body",
        SourceConfig(
            "stack_exchange", "jsonl", ("stackexchange_title_body/*.jsonl.gz",),
            extractor="embedding_texts", licence="CC BY-SA (Stack Exchange)",
        ),
        f"{HUB}flax-sentence-embeddings/stackexchange_title_body_jsonl",
        '{"texts": [title, body]}',
    ),
    collection_file("cnn_dailymail", "title and body", "cnn_dailymail.jsonl.gz", _PAIR),
    collection_file("xsum", "title and body", "xsum.jsonl.gz", _PAIR),
    hub_table(
        "ccnews", "title and body", "sentence-transformers/ccnews", "pair", ("title", "article"),
    ),
    collection_file("npr", "title and body", "npr.jsonl.gz", _PAIR),
    collection_file("agnews", "title and body", "agnews.jsonl.gz", _PAIR),
    collection_file(
        "wikihow", "title and body", "wikihow.jsonl.gz", _PAIR,
        note="A public script reports this file as missing from the collection.",
    ),
)  # fmt: skip

_NLI_ENTRIES = (
    hub_records("snli", "NLI", "stanfordnlp/snli", "", "nli_pairs", _NLI, "CC BY-SA 4.0"),
    hub_records(
        "snli_triplets", "NLI", "stanfordnlp/snli", "", "nli_triplets", _NLI, "CC BY-SA 4.0",
        "triplets", "Also at TFDS as snli.",
    ),
    hub_records(
        "mnli_triplets", "NLI", "nyu-mll/multi_nli", "", "nli_triplets", _NLI,
        "mixed (MultiNLI, by genre)", "triplets", "The hypotheses of a premise stand far apart.",
    ),
    collection_file(
        "all_nli", "NLI", "AllNLI.jsonl.gz", "[anchor, positive, negative]",
        "SNLI CC BY-SA 4.0, MultiNLI mixed", "triplets",
    ),
)  # fmt: skip

_OTHERS = (
    collection_file("coco_captions", "captions", "coco_captions.jsonl.gz", _SET),
    collection_file("flickr30k_captions", "captions", "flickr30k_captions.jsonl.gz", _SET),
    hub_table(
        "s2orc_abstracts", "citations", "sentence-transformers/s2orc", "title-abstract-pair",
        ("title", "abstract"),
    ),
    hub_table(
        "s2orc_citations", "citations", "sentence-transformers/s2orc", "title-citation-pair",
        ("title", "citation"),
    ),
    hub_table(
        "specter", "citations", "sentence-transformers/specter", "triplet",
        ("anchor", "positive", "negative"), "MIT (card of embedding-data/SPECTER)",
    ),
    collection_file("sentence_compression", "paraphrases", "sentence-compression.jsonl.gz", _PAIR),
    collection_file("simple_wiki", "paraphrases", "SimpleWiki.jsonl.gz", _SET),
    collection_file("altlex", "paraphrases", "altlex.jsonl.gz", _SET),
    CatalogueEntry(
        "paraphrases",
        SourceConfig(
            "wikisplit", "text", ("wikisplit/train.tsv",), extractor="wikisplit",
            licence="CC BY-SA 4.0",
        ),
        "https://github.com/google-research-datasets/wiki-split",
        "line: sentence, tab, `first half <::::> second half`",
    ),
    CatalogueEntry(
        "paraphrases",
        SourceConfig(
            "sts_benchmark", "text", ("sts_benchmark/sts-train.csv",), extractor="sts_pairs",
            licence="scores CC BY-SA 4.0, texts mixed",
        ),
        "http://ixa2.si.ehu.eus/stswiki/index.php/STSbenchmark",
        "line of 7 or more cells parted by tabs: ..., score, text, text",
        note="Train split only; dev and test are evaluation sets.",
    ),
    collection_file("codesearchnet", "code", "codesearchnet.jsonl.gz", _PAIR),
    hub_table(
        "negation", "negation", "jinaai/negation-dataset", "",
        ("anchor", "entailment", "negative"), "Apache-2.0",
        "10,000 triplets for training, 500 for evaluation; negation-dataset-v2 has 50,000.",
        in_paper=True,
    ),
)  # fmt: skip

ENTRIES: tuple[CatalogueEntry, ...] = (
    *_SEARCH, *_QUESTIONS, *_DUPLICATES, *_SHOPPING, *_ARTICLES, *_NLI_ENTRIES, *_OTHERS,
)  # fmt: skip
