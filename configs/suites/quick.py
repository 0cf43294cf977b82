"""One small task of each kind: minutes on a small machine."""

from jina_jax.config import Suite, SuiteTask


def get_suite() -> Suite:
    """STS, reranking and retrieval over some thousand passages."""
    return Suite(
        "quick",
        {
            "STS": (SuiteTask("STSBenchmark"), SuiteTask("BIOSSES")),
            "Reranking": (SuiteTask("AskUbuntuDupQuestions"),),
            "Retrieval": (SuiteTask("NFCorpus"), SuiteTask("SciFact")),
        },
    )
