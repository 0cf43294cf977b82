"""A server of S3 on this machine: `python -m tests.object_store PORT FOLDER DELAY_S FAILS_EVERY`.

Each folder in FOLDER is a bucket, and holds its objects at the start. Every answer to a GET waits
for DELAY_S, so that a test can stop the server in the midst of it. One of FAILS_EVERY requests is
answered with an error, as by a store that has too much to do; 0 for none. While there is a file
`FOLDER.expired`, requests are answered with the code of an error in it, such as ExpiredToken.
"""

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}  # fmt: skip


class ObjectStore:
    """A server process that can be killed and started again."""

    def __init__(self, folder: Path, delay_s: float = 0.0, fails_every: int = 0):
        self.folder, self.delay_s, self.fails_every = folder, delay_s, fails_every
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.expired = folder.with_name(f"{folder.name}.expired")
        self.environment = CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

    def start(self) -> None:
        """Returns when it answers; its objects are those of the folder."""
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # One that was made before knows another server.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.object_store", str(self.port), str(self.folder),
             str(self.delay_s), str(self.fails_every)],
            env=os.environ | CREDENTIALS, cwd=ROOT, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise TimeoutError("the object store did not start")

    def kill(self) -> None:
        """Ends it at once, with whatever is under way."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def _serve(port: int, folder: Path, delay_s: float, fails_every: int) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple
    from werkzeug.test import Client

    store = DomainDispatcherApplication(create_backend_app)
    client = Client(store)
    for bucket in folder.iterdir():
        assert client.put(f"/{bucket.name}").status_code == 200
        for path in sorted(p for p in bucket.rglob("*") if p.is_file()):
            key = f"/{bucket.name}/{path.relative_to(bucket)}"
            assert client.put(key, data=path.read_bytes()).status_code == 200

    asked, expired = itertools.count(1), folder.with_name(f"{folder.name}.expired")

    def slow(environ: Any, start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == "GET":
            time.sleep(delay_s)
        if expired.exists():
            start_response("400 Bad Request", [("Content-Type", "application/xml")])
            code = expired.read_text()
            text = f"<Error><Code>{code}</Code><Message>It has expired.</Message></Error>"
            return [text.encode()]
        if fails_every and next(asked) % fails_every == 0:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code><Message>Reduce your rate.</Message></Error>"]
        return store(environ, start_response)

    run_simple("127.0.0.1", port, slow, threaded=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
