"""The English tasks that the paper reports (Günther et al. 2023, arXiv 2307.11224, section 5)."""

from jina_jax.config import Suite, SuiteTask

_STS = (
    SuiteTask("BIOSSES"),
    SuiteTask("SICK-R"),
    SuiteTask("STS12"),
    SuiteTask("STS13"),
    SuiteTask("STS14"),
    SuiteTask("STS15"),
    SuiteTask("STS16"),
    SuiteTask("STS17", ("en-en",)),
    SuiteTask("STS22", ("en",)),
    SuiteTask("STSBenchmark"),
)
_RERANKING = (
    "AskUbuntuDupQuestions",
    "MindSmallReranking",
    "SciDocsRR",
    "StackOverflowDupQuestions",
)
_RETRIEVAL = (
    "ArguAna", "ClimateFEVER", "CQADupstackRetrieval", "DBPedia", "FEVER", "FiQA2018", "HotpotQA",
    "MSMARCO", "NFCorpus", "NQ", "QuoraRetrieval", "SCIDOCS", "SciFact", "TRECCOVID", "Touche2020",
)  # fmt: skip


def get_suite() -> Suite:
    """STS, reranking and BEIR; millions of passages in all."""
    return Suite(
        "jina_v1",
        {
            "STS": _STS,
            "Reranking": tuple(map(SuiteTask, _RERANKING)),
            "Retrieval": tuple(map(SuiteTask, _RETRIEVAL)),
        },
    )
