"""Neighbours from a SPARQL service on this machine: asked once, politely, again after failures, and kept on disk."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from urllib.parse import parse_qs, urlsplit

import pytest

from tl_rome.counterfact.dataset.wikidata import WikiDataNeighbors, sparql
from tl_rome.errors import InputError, NetworkError
from tl_rome.fact_files import Target

ANKARA = Target("Ankara", "Q3640")
NAMES = ["TRT Haber", "Gençlerbirliği S.K.", "TRT Haber", "AnadoluJet"]


class Service(ThreadingHTTPServer):
    """Answers with the next of the prepared replies, and repeats the last one."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[tuple[int, str]] = [(200, answer(*NAMES))]
        self.headers: dict[str, str] = {}
        self.drips, self.over = False, threading.Event()
        self.requests: list[tuple[float, str, dict[str, str]]] = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/sparql"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        service = self.server
        assert isinstance(service, Service)
        query = parse_qs(urlsplit(self.path).query)["query"][0]
        service.requests.append((time.monotonic(), query, dict(self.headers)))
        status, body = service.replies.pop(0) if len(service.replies) > 1 else service.replies[0]
        self.send_response(status)
        for name, value in service.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/sparql-results+json")
        self.end_headers()
        for part in body.encode() if service.drips else ():
            self.wfile.write(bytes([part]))
            if service.over.wait(0.05):
                return
        if not service.drips:
            self.wfile.write(body.encode())

    def log_message(self, format, *args):
        pass


def answer(*names):
    return json.dumps({"results": {"bindings": [{"name": {"type": "literal", "value": name}} for name in names]}})


@pytest.fixture
def service():
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def client(service, folder, **options):
    settings = {"interval": 0.0, "backoff": 0.01, "retries": 3, "timeout": 5.0, **options}
    return WikiDataNeighbors(cache=folder, endpoint=service.url, **settings)


def test_names_are_asked_for_once_and_then_come_from_disk(service, tmp_path):
    neighbors = client(service, tmp_path / "deep", user_agent="tests (nobody@example.org)")
    found = neighbors("P159", ANKARA)
    assert found == ["AnadoluJet", "Gençlerbirliği S.K.", "TRT Haber"]
    (_, query, headers), *_ = service.requests
    assert "?subject wdt:P159 wd:Q3640" in query
    assert (headers["User-Agent"], headers["Accept"]) == (
        "tests (nobody@example.org)",
        "application/sparql-results+json",
    )
    assert neighbors("P159", ANKARA) == client(service, tmp_path / "deep")("P159", ANKARA) == found
    assert len(service.requests) == 1
    neighbors("P159", Target("Glasgow", "Q4093"))
    client(service, tmp_path / "deep", limit=7)("P159", ANKARA)
    assert len(service.requests) == 3
    assert service.requests[-1][1].endswith("LIMIT 7")


def test_a_damaged_answer_on_disk_is_asked_for_again(service, tmp_path):
    neighbors = client(service, tmp_path)
    found = neighbors("P159", ANKARA)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text("utf-8")[:-30], "utf-8")
    assert neighbors("P159", ANKARA) == found
    assert len(service.requests) == 2
    assert json.loads(path.read_text("utf-8"))["names"] == found


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failed_requests_are_repeated(service, tmp_path, status):
    service.replies = [(status, "busy"), (status, "busy"), *service.replies]
    assert client(service, tmp_path)("P159", ANKARA)
    assert len(service.requests) == 3


def test_a_service_that_stays_down_is_an_error_and_nothing_is_kept(service, tmp_path):
    service.replies = [(503, "down")]
    with pytest.raises(NetworkError, match=r"127\.0\.0\.1.* gave no answer in 4 tries.*503"):
        client(service, tmp_path)("P159", ANKARA)
    assert len(service.requests) == 4
    assert not list(tmp_path.iterdir())


def test_a_pause_that_the_service_asks_for_is_made(service, tmp_path):
    service.headers = {"Retry-After": "1"}
    service.replies = [(429, "busy"), *service.replies]
    assert client(service, tmp_path)("P159", ANKARA)
    assert service.requests[1][0] - service.requests[0][0] >= 0.9


def test_a_pause_of_many_minutes_is_an_error_instead(service, tmp_path):
    service.headers, service.replies = {"Retry-After": "600"}, [(429, "busy")]
    with pytest.raises(NetworkError, match="asks to be left alone for 600 seconds, more than 60; try then"):
        client(service, tmp_path)("P159", ANKARA)
    assert len(service.requests) == 1


def test_an_answer_that_drips_is_given_up_as_a_whole(service, tmp_path):
    service.drips = True
    started = time.monotonic()
    with pytest.raises(NetworkError, match=r"gave no answer in 2 tries.* no answer within 0\.3 seconds"):
        client(service, tmp_path, timeout=0.3, retries=1)("P159", ANKARA)
    assert time.monotonic() - started < 5
    assert len(service.requests) == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [((400, "no"), "400"), ((200, "<html>"), "or none in JSON"), ((200, "[]"), "something other than SPARQL results")],
)
def test_refusals_and_nonsense_are_not_repeated(service, tmp_path, reply, message):
    service.replies = [reply]
    with pytest.raises(NetworkError, match=message):
        client(service, tmp_path)("P159", ANKARA)
    assert len(service.requests) == 1


def test_a_service_that_cannot_be_reached_is_an_error(tmp_path):
    neighbors = WikiDataNeighbors(cache=tmp_path, endpoint="http://127.0.0.1:9/sparql", retries=1, backoff=0.01)
    with pytest.raises(NetworkError, match="gave no answer in 2 tries"):
        neighbors("P159", ANKARA)


def test_requests_are_spaced(service, tmp_path):
    neighbors = client(service, tmp_path, interval=0.2)
    for name in ("Q1", "Q2", "Q3"):
        neighbors("P159", Target("x", name))
    moments = [moment for moment, *_ in service.requests]
    assert min(later - earlier for earlier, later in pairwise(moments)) >= 0.19


def test_objects_without_identifier_are_looked_up_by_name():
    query = sparql("P19", Target('Al "Scarface" Town\\'), language="en", limit=5)
    assert '?object rdfs:label "Al \\"Scarface\\" Town\\\\"@en . ?subject wdt:P19 ?object' in query


@pytest.mark.parametrize(
    ("relation_id", "target", "options", "message"),
    [
        ("P1 } DROP", ANKARA, {}, "relation_id is 'P1 } DROP'"),
        ("P1", Target("Ankara", "3640"), {}, "identifier of 'Ankara' is '3640'"),
        ("P1", ANKARA, {"language": 'en") }'}, "language is"),
        ("P1", ANKARA, {"limit": 0}, "limit is 0; give a number of at least 1"),
    ],
)
def test_identifiers_that_are_not_wikidatas_are_refused(tmp_path, relation_id, target, options, message):
    with pytest.raises(InputError, match=message.replace("}", r"\}")):
        WikiDataNeighbors(cache=tmp_path, **options)(relation_id, target)
