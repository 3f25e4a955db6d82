"""Where the gateways are, and what the simulated servers say about them.

Three gateways stand in front of the same simulated vLLM servers: one wants keys,
one is open, and one can be pinned to a level. The Go test that starts this suite
tells the addresses.
"""

import base64
import json
import os
import time
import urllib.request
import uuid

import pytest

URL = os.environ["TIDEGATE_URL"]
OPEN_URL = os.environ["TIDEGATE_OPEN_URL"]
KEY = os.environ["TIDEGATE_KEY"]
SMALL_KEY = os.environ["TIDEGATE_SMALL_KEY"]
MODEL = os.environ["TIDEGATE_MODEL"]
SMALL_MODEL = os.environ["TIDEGATE_SMALL_MODEL"]
PATIENCE = 20  # seconds

LONG = 30_000  # tokens of an answer that nobody waits for


class Servers:
    """The simulated servers, seen from behind."""

    def __init__(self, urls):
        self.urls = urls

    def _call(self, url, path, method="GET", body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(url + path, data=data, method=method)
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def record(self, tag):
        """Waits for the record of the ended request whose body holds tag."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for url in self.urls:
                for record in self._call(url, "/sim/requests?last=50"):
                    if tag.encode() in base64.b64decode(record["Body"] or ""):
                        return record
        raise AssertionError(f"no server ever ended a request with {tag}")

    def fault(self, **fault):
        for url in self.urls:
            self._call(url, "/sim/faults", "POST", fault)

    def heal(self):
        for url in self.urls:
            self._call(url, "/sim/faults", "DELETE")


@pytest.fixture
def servers():
    all_of_them = Servers(os.environ["TIDEGATE_SIMS"].split(","))
    yield all_of_them
    all_of_them.heal()


@pytest.fixture
def slowly(servers):
    """Servers of a real one's pace."""
    servers.fault(kind="slow", delay_ms=10)
    return servers


@pytest.fixture
def tag():
    """A word by which a request is found again in the servers' records."""
    return "tag-" + uuid.uuid4().hex
