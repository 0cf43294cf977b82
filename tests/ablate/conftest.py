import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Arms and seeds run the same programs: each is compiled once, here and in other processes."""
    folder = tmp_path_factory.getbasetemp() / "compiled"
    before = (
        jax.config.jax_compilation_cache_dir,
        jax.config.jax_persistent_cache_min_compile_time_secs,
    )
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    yield folder
    jax.config.update("jax_compilation_cache_dir", before[0])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])
