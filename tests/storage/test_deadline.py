"""Work that is not done in time is given up, and a hub that is busy or silent is reported within a bounded time."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tl_rome import load_model
from tl_rome.counterfact import load_counterfact
from tl_rome.editors import Edit
from tl_rome.errors import ModelUnavailableError, NetworkError
from tl_rome.storage import hub
from tl_rome.storage.deadline import within

pytestmark = pytest.mark.leg("3.9", "lowest")


def test_what_is_done_in_time_is_handed_on():
    assert within(5.0, lambda: "done") == "done"
    with pytest.raises(KeyError, match="lost"):
        within(5.0, lambda: {}["lost"])


def test_what_is_not_done_in_time_is_given_up():
    blocked = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 seconds"):
        within(0.05, blocked.wait)
    blocked.set()


class _Hub(ThreadingHTTPServer):
    """Answers every request with its status, and never if that is None."""

    daemon_threads = True
    status: int | None = None

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.over = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        hub = self.server
        assert isinstance(hub, _Hub)
        if hub.status is None:
            hub.over.wait(30)
            return
        self.send_response(hub.status)
        self.send_header("Retry-After", "86400")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, format, *args):
        pass


@pytest.fixture
def hub_with(monkeypatch, tmp_path):
    """Give `hub_with(status)`: the hub's client asks a server on this machine that answers with it."""
    server = _Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def start(status):
        server.status = status
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        return url

    yield start
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


CALLS = [
    (lambda: load_model("someone/model", progress=False), ModelUnavailableError),
    (lambda: Edit.load("hf://someone/edits/eiffel.safetensors"), NetworkError),
    (lambda: load_counterfact("someone/records"), NetworkError),
]


@pytest.mark.parametrize(("call", "error"), CALLS)
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_not_waited_for(hub_with, call, error, status):
    url, started = hub_with(status), time.monotonic()
    with pytest.raises(error, match=f"{url} answers with status {status}"):
        call()
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(("call", "error"), CALLS)
def test_a_silent_hub_is_waited_for_as_long_as_is_said(hub_with, monkeypatch, call, error):
    url = hub_with(None)
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    with pytest.raises(error, match=rf"{url} gives no answer within 0\.3 seconds; try again later"):
        call()


def test_what_the_hub_does_not_have_is_an_answer_too(hub_with, monkeypatch):
    hub_with(404)
    assert hub.hub_silence("someone/model") is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub_with(429)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert hub.hub_silence("someone/model") is None, "the user has told the client to stay offline"
