"""Clients that wait, each of which gets exactly one reply, whatever ends its wait. With KEYWARD.DEBUG of
the debug build: WAIT ms holds the client, WAKE answers all who wait with their turn, beginning with 1,
and gives their number."""

import resource

import pytest
from raw_client import ErrorReply, RawClient, encode
from servers import Server, eventually

WAKE = ("KEYWARD.DEBUG", "WAKE")
NULL = {2: b"$-1\r\n", 3: b"_\r\n"}

# The first test builds the module.
pytestmark = pytest.mark.timeout(960)


class Waiting(RawClient):
    """A client that waits as soon as it is there."""

    def __init__(self, server, protocol=2, timeout_ms=0):
        super().__init__(server, protocol)
        self.id = self.call("CLIENT", "ID")
        self.wait(timeout_ms)

    def wait(self, timeout_ms=0):
        self._socket.sendall(encode(("KEYWARD.DEBUG", "WAIT", timeout_ms)))

    def line(self):
        """The reply as it is on the wire: one line."""
        return self._file.readline()

    def has_no_other_reply(self):
        return self.call("ECHO", "next") == b"next"


def blocked(server, number):
    """Waits until so many clients are held."""
    eventually(lambda: server.info("clients")["blocked_clients"] == number)


@pytest.fixture(scope="module")
def shared(debug_module, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEYWARD_MODULE", str(debug_module))
        server = Server(tmp_path_factory.mktemp("blocked")).start()
    yield server
    server.stop()


@pytest.fixture
def server(shared):
    yield shared
    shared.check()
    blocked(shared, 0)
    assert shared.info("everything")["keyward_caught_panics"] == 0


@pytest.fixture
def make_debug_server(make_server, debug_module, monkeypatch):
    monkeypatch.setenv("KEYWARD_MODULE", str(debug_module))
    return make_server


@pytest.fixture
def raw(server):
    with RawClient(server) as raw:
        yield raw


@pytest.fixture
def waiting(server, protocol):
    """waiting() -> a client that is held by now, so that the calls give the order of arrival."""
    clients = []

    def wait(timeout_ms=0):
        held = server.info("clients")["blocked_clients"]
        clients.append(Waiting(server, protocol, timeout_ms))
        blocked(server, held + 1)
        return clients[-1]

    yield wait
    for client in clients:
        client.close()


# What ends a wait


def test_who_came_first_is_answered_first(raw, waiting):
    clients = [waiting() for _ in range(5)]
    assert raw.call(*WAKE) == 5
    assert [client.read() for client in clients] == [1, 2, 3, 4, 5]
    assert all(client.has_no_other_reply() for client in clients)
    assert raw.call(*WAKE) == 0


def test_a_client_can_wait_again_and_has_lost_its_place(server, raw, waiting):
    first, second = waiting(), waiting()
    raw.call("CLIENT", "UNBLOCK", first.id)
    first.read()
    first.wait()
    blocked(server, 2)
    assert raw.call(*WAKE) == 2
    assert (first.read(), second.read()) == (2, 1)


def test_what_was_sent_behind_a_wait_comes_after_it(server, raw, waiting):
    client = waiting()
    client._socket.sendall(encode(("ECHO", "behind")) + encode(("KEYWARD.DEBUG", "WAIT", 0)))
    assert raw.call(*WAKE) == 1
    assert (client.read(), client.read()) == (1, b"behind")
    blocked(server, 1)
    assert raw.call(*WAKE) == 1
    assert client.read() == 1


def test_a_wait_runs_out(server, raw, protocol):
    with Waiting(server, protocol, timeout_ms=50) as client:
        assert client.line() == NULL[protocol]
        assert client.has_no_other_reply()
        assert raw.call(*WAKE) == 0


def test_zero_and_the_greatest_number_of_milliseconds_do_not_run_out(server, raw, waiting):
    clients = [waiting(0), waiting(2**63 - 1)]
    with Waiting(server, timeout_ms=50) as short:
        assert short.read() is None
    assert raw.call(*WAKE) == 2
    assert [client.read() for client in clients] == [1, 2]


def test_client_unblock(raw, waiting, protocol):
    client, other = waiting(), waiting()
    assert raw.call("CLIENT", "UNBLOCK", client.id) == 1
    assert client.line() == NULL[protocol]
    assert client.has_no_other_reply()
    assert raw.call(*WAKE) == 1
    assert other.read() == 1


def test_client_unblock_error(raw, waiting):
    client, other = waiting(), waiting()
    assert raw.call("CLIENT", "UNBLOCK", client.id, "ERROR") == 1
    reply = client.read()
    assert isinstance(reply, ErrorReply)
    assert reply.startswith("UNBLOCKED ")
    assert client.has_no_other_reply()
    assert raw.call(*WAKE) == 1
    assert other.read() == 1


def test_who_is_killed_or_hangs_up_is_neither_answered_nor_counted(server, raw, waiting):
    first, killed, closed, last = (waiting() for _ in range(4))
    assert raw.call("CLIENT", "KILL", "ID", killed.id) == 1
    closed.close()
    blocked(server, 2)
    assert raw.call(*WAKE) == 2
    assert (first.read(), last.read()) == (1, 2)
    with pytest.raises((ConnectionError, OSError)):
        killed.read()


def test_a_thousand_are_answered_in_one_turn(server, raw, protocol):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    clients = [Waiting(server, protocol) for _ in range(1000)]
    blocked(server, 1000)
    number, info = raw.pipeline([WAKE, ("INFO", "clients")])
    assert number == 1000
    assert b"\r\nblocked_clients:0\r\n" in info
    assert sorted(client.read() for client in clients) == list(range(1, 1001))
    assert all(client.has_no_other_reply() for client in clients)
    for client in clients:
        client.close()


# Two ends in one turn of the server: the first one counts, and there is no second reply

LONG_MS = 1500  # a wait that does not run out before the test wants it to


@pytest.mark.parametrize(
    ("then", "reply"),
    [
        (("DEBUG", "SLEEP", 1.6), "OK"),
        (("CLIENT", "UNBLOCK", "id"), 0),
        (("CLIENT", "UNBLOCK", "id", "ERROR"), 0),
        (WAKE, 0),
    ],
    ids=["runs out", "unblock", "unblock error", "answered again"],
)
def test_answered_and_then(raw, waiting, then, reply):
    client = waiting(LONG_MS)
    then = [client.id if word == "id" else word for word in then]
    assert raw.pipeline([WAKE, then]) == [1, reply]
    assert client.read() == 1
    assert client.has_no_other_reply()


@pytest.mark.parametrize(("how", "reply"), [("TIMEOUT", type(None)), ("ERROR", ErrorReply)])
def test_unblocked_and_then_answered(raw, waiting, how, reply):
    client = waiting()
    assert raw.pipeline([("CLIENT", "UNBLOCK", client.id, how), WAKE]) == [1, 0]
    assert isinstance(client.read(), reply)
    assert client.has_no_other_reply()


def test_answered_and_killed_in_either_order(raw, waiting):
    clients = [waiting() for _ in range(3)]
    kills = [("CLIENT", "KILL", "ID", client.id) for client in clients]
    assert raw.pipeline([kills[0], WAKE, kills[1], WAKE]) == [1, 2, 1, 0]
    assert clients[2].read() == 2


# Where nobody can be held: as if the command did not wait

FUNCTION = """#!lua name=blocked
redis.register_function('wait', function() return {redis.call('KEYWARD.DEBUG', 'WAIT', 0), 'on'} end)
redis.register_function('wake', function() return redis.call('KEYWARD.DEBUG', 'WAKE') end)
"""


def test_in_a_transaction(server, waiting, protocol):
    client = waiting()
    with RawClient(server, protocol) as caller:
        commands = [("MULTI",), ("KEYWARD.DEBUG", "WAIT", 0), WAKE, ("ECHO", "on"), ("EXEC",)]
        assert caller.pipeline(commands)[-1] == [None, 1, b"on"]
    assert client.read() == 1


def test_in_a_script(server, waiting, protocol):
    client = waiting()
    with RawClient(server, protocol) as caller:
        assert caller.call("EVAL", "return redis.call('KEYWARD.DEBUG', 'WAIT', 0)", 0) is None
        assert caller.call("EVAL", "return redis.call('KEYWARD.DEBUG', 'WAKE')", 0) == 1
    assert client.read() == 1


def test_in_a_function(server, waiting, protocol):
    client = waiting()
    with RawClient(server, protocol) as caller:
        assert caller.call("FUNCTION", "LOAD", "REPLACE", FUNCTION) == b"blocked"
        assert caller.call("FCALL", "wait", 0) == [None, b"on"]
        assert caller.call("FCALL", "wake", 0) == 1
    assert client.read() == 1


# The server itself


def test_a_change_of_role_ends_all_waits(make_debug_server, protocol):
    server = make_debug_server()
    with RawClient(server) as raw:
        waiting = [Waiting(server, protocol), Waiting(server, protocol)]
        blocked(server, 2)
        # To a primary that is not there: the role changes all the same.
        assert raw.pipeline([("REPLICAOF", "127.0.0.1", 1), WAKE]) == ["OK", 0]
        for client in waiting:
            reply = client.read()
            assert isinstance(reply, ErrorReply)
            assert reply.startswith("UNBLOCKED ")
        blocked(server, 0)
        # What a replica holds stays held when it is promoted.
        client = Waiting(server, protocol)
        blocked(server, 1)
        assert raw.pipeline([("REPLICAOF", "NO", "ONE"), WAKE]) == ["OK", 1]
        assert client.read() == 1


def test_an_answer_is_not_lost_when_the_role_changes_right_after(make_debug_server, protocol):
    server = make_debug_server()
    with RawClient(server) as raw:
        client = Waiting(server, protocol)
        blocked(server, 1)
        assert raw.pipeline([WAKE, ("REPLICAOF", "127.0.0.1", 1)]) == [1, "OK"]
        assert client.read() == 1


def test_shutdown(make_debug_server, protocol):
    server = make_debug_server()
    clients = [Waiting(server, protocol), Waiting(server, protocol, LONG_MS)]
    blocked(server, 2)
    server.stop()
    for client in clients:
        with pytest.raises(OSError, match="closed|reset"):
            client.read()


def test_a_server_without_client_unblock(make_debug_server, protocol):
    """rename-command takes away what an answer is usually brought by."""
    server = make_debug_server(config=['rename-command CLIENT ""'])
    with RawClient(server) as raw, RawClient(server, protocol) as client:
        for turn in range(3):
            client._socket.sendall(encode(("KEYWARD.DEBUG", "WAIT", 0)))
            blocked(server, 1)
            assert raw.pipeline([WAKE, WAKE]) == [1, 0], turn
            assert client.read() == 1
        assert client.call("ECHO", "next") == b"next"


@pytest.mark.parametrize("end", ["answer", "unblock", "unblock error", "hang up"])
def test_nothing_stays_in_memory(server, raw, end):
    """The server keeps some 30 kB for a client that waits, until the module gives its handle back."""

    def rounds(number):
        for _ in range(number):
            with Waiting(server) as client:
                blocked(server, 1)
                match end:
                    case "answer":
                        raw.call(*WAKE)
                    case "unblock":
                        raw.call("CLIENT", "UNBLOCK", client.id)
                    case "unblock error":
                        raw.call("CLIENT", "UNBLOCK", client.id, "ERROR")
                if end != "hang up":
                    client.line()
            blocked(server, 0)

    rounds(10)
    before = server.info("memory")["used_memory"]
    rounds(100)
    eventually(lambda: server.info("memory")["used_memory"] < before + 500_000)
