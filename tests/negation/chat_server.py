"""A server of chat completions that negates sentences, and misbehaves where it is told to."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWERS = {
    "A dog is in a park.": '```json\n{"entailment": "A dog is inside a park.", "negative": '
    '"A dog is not in a park."}\n```',
    "A cat is in a house.": '{"entailment": "A cat is inside a house.", "negative": "A cat is in',
    "A bird is in a tree.": '{"entailment": "A bird is inside a tree.", '
    '"negative": "A bird is never not in a tree."}',
    "A fish is in a lake.": '{"entailment": "A fish is inside a lake.", '
    '"negative": "A fish is in a lake."}',
    "A cow is in a field.": '{"entailment": "A cow is on a field.", "negative": "Oh not again!"}',
    "A pig is in a sty.": '["entailment", 3]',
}


class Server(ThreadingHTTPServer):
    """Answers chat completions, from a table of what to do with the requests in their order."""

    def __init__(self, *faults):
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.seen, self.answered, self.keys = list(faults), [], [], set()
        self.delay_s, self.most_at_once, self.at_once = 0.0, 0, 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            server.seen.append(prompt)
            server.keys.add(self.headers.get("Authorization"))
            fault = server.faults.pop(0) if server.faults else None
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        time.sleep(server.delay_s)
        with server.lock:
            server.at_once -= 1
        if fault is not None:
            fault(self)
            return
        text = prompt.rsplit("Sentence: ", 1)[1]
        stem = text.removesuffix(".")
        answer = ANSWERS.get(text) or json.dumps(
            {"entailment": f"{stem} now.", "negative": text.replace(" is ", " is not ")}
        )
        with server.lock:
            server.answered.append(text)
        self.reply(200, json.dumps({"choices": [{"message": {"content": answer}}]}))

    def reply(self, status, body, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


def busy(handler):
    handler.reply(429, "slow down", Retry_After="1")


def broken(handler):
    handler.reply(503, "later")


def cut(handler):
    handler.reply(200, '{"choices": [')


def hang(handler):
    time.sleep(0.8)


def refuse(handler):
    handler.reply(401, f"bad key {handler.headers['Authorization']}")
