import ctypes
import gc
import os

from tests.compiling import QUICKLY

# Before jax and torch are imported anywhere: eight virtual devices, code that is compiled quickly
# rather than well (most of a test is compiling), one thread for torch's small tensors (several only
# wait for each other), and no test may reach a hub.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + f" --xla_force_host_platform_device_count=8 {QUICKLY}"
)
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from jaxtyping import install_import_hook

# Array annotations are checked at run time in every test.
install_import_hook(
    [
        "jina_jax.model",
        "jina_jax.train.loss",
        "jina_jax.feed",
        "jina_jax.inference",
        "jina_jax.evaluate",
        "jina_jax.prepare.filters",
    ],
    "beartype.beartype",
)

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

import psutil  # noqa: E402
import pytest  # noqa: E402

pytest_plugins = ["tests.folders", "tests.export.versions"]


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory):
    """A program is compiled once, by the worker or trainer that comes to it first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "compiled"
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    return folder


def pytest_collection_finish():
    """What is imported by then stays: the collector, which is called often, need not look at it."""
    gc.collect()
    gc.freeze()


_MUCH_MEMORY = 1550 << 20


def _forget_programs():
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def memory_goes_back():
    """Programs of the tests of a file are of no use to those of the next."""
    yield
    _forget_programs()


@pytest.fixture(autouse=True)
def memory_stays_small():
    """Where a file's own programs are many, they go before its end; they stay on disk."""
    yield
    if psutil.Process().memory_info().rss > _MUCH_MEMORY:
        _forget_programs()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A prepared folder and a config file beside it."""
    from jina_jax.prepare.run import prepare
    from tests.prepared import CONFIG_FILE, tiny_config, write_jsonl

    folder = tmp_path_factory.mktemp("trainer")
    write_jsonl(folder)
    prepare(tiny_config(str(folder)).data, folder / "data", progress=False)
    (folder / "config.py").write_text(CONFIG_FILE.format(folder=str(folder)))
    return folder


@pytest.fixture(scope="session")
def uninterrupted(folder):
    """The curve of a trainer on two devices that was left in peace."""
    from tests.prepared import STEPS
    from tests.trainer import curve, finish, start

    finish(start(folder, "whole"))
    found = curve(folder, "whole")
    assert [step for step, *_ in found] == list(range(1, STEPS + 1))
    return found


@pytest.fixture(autouse=True, scope="module")
def no_trainer_is_left():
    """A test that fails may leave its trainer running."""
    yield
    from tests.trainer import end_all

    end_all()
