"""Uploads, to a server of this process that speaks as the hub does."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest

from jina_jax.errors import UserError
from jina_jax.export.run import push

COMMIT = "/me/tiny/commit/1"


class Hub(BaseHTTPRequestHandler):
    """Takes what is committed, from whoever has the token `right`."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)
        if self.headers.get("Authorization") != "Bearer right":
            return self.answer(401, {"error": f"no: {self.headers.get('Authorization')}"})
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        if self.path.endswith("/repos/create"):
            self.server.private = lines[0].get("private", lines[0].get("visibility") == "private")
            return self.answer(200, {"url": "http://127.0.0.1/me/tiny"})
        if "/preupload/" in self.path:
            one = {"uploadMode": "regular", "shouldIgnore": False}
            files = [{"path": f["path"]} | one for f in lines[0]["files"]]
            return self.answer(200, {"files": files})
        if self.path.endswith("/validate-yaml"):
            return self.answer(200, {"errors": [], "warnings": []})
        assert "/commit/" in self.path
        for line in lines:
            if line["key"] == "file":
                value = line["value"]
                self.server.files[value["path"]] = base64.b64decode(value["content"])
        return self.answer(200, {"commitUrl": f"{self.server.address}{COMMIT}", "commitOid": "1"})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files, server.private = [], {}, None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "right")
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "README.md").write_text("# A card\n")
    (tmp_path / "1_Pooling" / "config.json").write_text("{}")
    return tmp_path


def test_the_folder_is_uploaded_in_one_commit(hub, folder):
    assert push(folder, "me/tiny", private=True) == hub.address + COMMIT
    assert hub.files == {"README.md": b"# A card\n", "1_Pooling/config.json": b"{}"}
    assert hub.private is True
    assert sum("/commit/" in path for path in hub.asked) == 1


def test_without_a_token_nothing_is_asked(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="set HF_TOKEN"):
        push(folder, "me/tiny", private=True)
    assert not hub.asked


def test_a_refused_token_is_not_shown(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong-and-secret")
    with pytest.raises(UserError, match="the hub could not take it") as raised:
        push(folder, "me/tiny", private=True)
    assert "wrong-and-secret" not in str(raised.value)
    assert raised.value.__cause__ is None and not hub.files


def test_no_hub_in_reach(hub, folder, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"the hub could not take it .*the folder itself is whole"):
        push(folder, "me/tiny", private=True)
