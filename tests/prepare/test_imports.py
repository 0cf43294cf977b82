import subprocess
import sys


def test_preparation_never_imports_jax():
    # A worker that only reads shards must not start a device.
    script = (
        "import sys, jina_jax.prepare.run, jina_jax.shards.array_record\n"
        "print([m for m in ('jax', 'flax', 'torch', 'tensorflow') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
