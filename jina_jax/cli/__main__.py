"""`python -m jina_jax.cli`."""

import sys

from jina_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
