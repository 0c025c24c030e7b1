"""Subjects that share a relation and an object, from WikiData's SPARQL service (appendix D).

The service is public: requests are spaced, failed ones are repeated after growing pauses (a `Retry-After` of up to a
minute is obeyed), and answers are kept on disk, so that a data set can be compiled again without the network and from
the same neighbours.
"""

import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tl_rome.arguments import Count, NotNegative, Positive, Whole
from tl_rome.counterfact.records import Target
from tl_rome.errors import InputError, NetworkError, require
from tl_rome.storage.deadline import within
from tl_rome.storage.json_text import parse_json, seal, unseal
from tl_rome.storage.parts import read_as
from tl_rome.storage.writing import write_whole

if TYPE_CHECKING:
    from requests import Response, Session

ENDPOINT = "https://query.wikidata.org/sparql"
LONGEST_PAUSE = 60.0
"""Seconds between two tries, at most; a service that asks for more is not waited for."""
_RETRIED = (429, 500, 502, 503, 504)


@dataclass(kw_only=True)
class WikiDataNeighbors:
    """Callable for `build_records`: names of subjects by relation_id and object.

    Raises:
        InputError: If a number is out of range.
    """

    cache: Path
    """Folder that keeps answers; made when needed."""
    endpoint: str = ENDPOINT
    """SPARQL service."""
    user_agent: str = "tl_rome (COUNTERFACT builder)"
    """Who asks; WikiData wants a way to reach you in it."""
    language: str = "en"
    """Of the names."""
    limit: Count = 500
    """Subjects asked for at most, in whatever order the service finds them."""
    interval: NotNegative = 1.0
    """Seconds between two requests, at least."""
    retries: Whole = 5
    """Further tries of a failed request."""
    backoff: NotNegative = 1.0
    """Seconds before the second of them; doubled each time."""
    timeout: Positive = 90.0
    """Seconds to wait for an answer."""
    _last: float = field(default=float("-inf"), init=False, repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z]+(-[a-z]+)*", self.language):
            raise InputError(f"language is {self.language!r}; use a code such as 'en'")

    def __call__(self, relation_id: str, target: Target) -> list[str]:
        """Names of subjects, sorted; from disk if the same was asked before.

        Args:
            relation_id: WikiData property such as P159.
            target: The object, looked up by its identifier, or by its name if it has none.

        Raises:
            InputError: If the relation or the identifier is not WikiData's.
            NetworkError: If the service cannot be reached or does not answer with names.
            MissingPackageError: If requests is not installed.
        """
        query = sparql(relation_id, target, language=self.language, limit=self.limit)
        key = hashlib.sha256(f"{self.endpoint}\n{query}".encode()).hexdigest()[:32]
        path = self.cache / f"{relation_id}-{key}.json"
        try:
            answer, checksum = unseal(path.read_bytes())
            sound = checksum is not None or set(answer) == {
                "endpoint",
                "query",
                "names",
            }  # as earlier versions wrote it
            if sound and answer["query"] == query:
                return list(read_as(tuple[str, ...], answer["names"], "names"))
        except (OSError, ValueError, KeyError):  # never asked, or a damaged file
            pass
        names = self._ask(query)
        write_whole(path, seal({"endpoint": self.endpoint, "query": query, "names": names}).encode())
        return names

    def _ask(self, query: str) -> list[str]:
        require("requests", extra="eval")
        from requests import RequestException, Session

        time.sleep(max(0.0, self._last + self.interval - time.monotonic()))
        try:
            with Session() as session:
                session.headers.update({"User-Agent": self.user_agent, "Accept": "application/sparql-results+json"})
                answer = self._answer(session, {"query": query, "format": "json"})
            answer.raise_for_status()
            rows = parse_json(answer.content)["results"]["bindings"]
            return sorted({read_as(str, row["name"]["value"], "a name") for row in rows} - {""})
        except (RequestException, ValueError, TimeoutError) as error:
            raise NetworkError(
                f"{self.endpoint} gave no answer in {self.retries + 1} tries, or none in JSON: {error}"
            ) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise NetworkError(
                f"{self.endpoint} answered with something other than SPARQL results: {error!r}"
            ) from error
        finally:
            self._last = time.monotonic()

    def _answer(self, session: "Session", asked: dict[str, str]) -> "Response":
        """The last answer of as many tries as it takes, each of which is given `timeout` seconds as a whole."""
        from requests import RequestException

        def get() -> "Response":
            return within(self.timeout, lambda: session.get(self.endpoint, params=asked, timeout=float(self.timeout)))

        for further in range(self.retries):
            pause = self.backoff * 2 ** min(further - 1, 30) if further else 0.0
            try:
                answer = get()
                if answer.status_code not in _RETRIED:
                    return answer
                pause = self._asked_pause(answer) or pause
            except (RequestException, TimeoutError):
                pass  # as for a busy service
            time.sleep(min(pause, LONGEST_PAUSE))
        return get()

    def _asked_pause(self, answer: "Response") -> float:
        """Seconds that a busy service wants to be left alone, 0 if it does not say.

        Raises:
            NetworkError: If they are more than anyone would wait.
        """
        from urllib3.exceptions import InvalidHeader
        from urllib3.util import Retry

        try:
            pause = Retry().parse_retry_after(answer.headers.get("Retry-After", "0"))
        except InvalidHeader:
            return 0.0
        if pause > LONGEST_PAUSE:
            raise NetworkError(
                f"{self.endpoint} asks to be left alone for {pause:.0f} seconds, more than {LONGEST_PAUSE:g}; try then"
            )
        return float(pause)


def sparql(relation_id: str, target: Target, *, language: str, limit: int) -> str:
    """The query for names of subjects that stand in a relation to an object.

    Raises:
        InputError: If the relation or the identifier is not WikiData's.
    """
    if not re.fullmatch(r"P\d+", relation_id):
        raise InputError(f"relation_id is {relation_id!r}; WikiData's are like 'P159'")
    if target.id is None:
        found, known = "?object", f"?object rdfs:label {json.dumps(target.str, ensure_ascii=False)}@{language} . "
    elif re.fullmatch(r"Q\d+", target.id):
        found, known = f"wd:{target.id}", ""
    else:
        raise InputError(f"the identifier of {target.str!r} is {target.id!r}; WikiData's are like 'Q3640'")
    return (
        f"SELECT DISTINCT ?name WHERE {{ {known}?subject wdt:{relation_id} {found} ; rdfs:label ?name . "
        f'FILTER(LANG(?name) = "{language}") }} LIMIT {limit}'
    )
