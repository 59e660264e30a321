"""Locks for tests: many of them, a way to evict them all at once, and clients that wait for them."""

from contextlib import ExitStack

from raw_client import ErrorReply, RawClient, fields
from servers import eventually

LOCKS = 20


def acquire(client, key="lock", owner="ann", px=600_000):
    return client.execute_command("LOCK.ACQUIRE", key, owner, "PX", px)


def validate(client, token, key="lock"):
    return client.execute_command("LOCK.VALIDATE", key, token)


def acquire_many(client, count=LOCKS, px=600_000):
    """key -> token"""
    return {f"lock:{number}": acquire(client, f"lock:{number}", px=px) for number in range(count)}


def all_valid(client, locks):
    return all(validate(client, token, key) == 1 for key, token in locks.items())


def make_evicting(make_server, policy="allkeys-random", *config):
    """A server that evicts in one go, however long it takes."""
    return make_server(config=[f"maxmemory-policy {policy}", "maxmemory-eviction-tenacity 100", *config])


def evict_everything(server, *then):
    """Evicts all that the policy lets go, and runs the commands of `then` before any timer can: they
    arrive in the same packet. Their replies."""
    with RawClient(server) as raw:
        evict = [("CONFIG", "SET", "maxmemory", 1), ("SET", "big", "x"), ("CONFIG", "SET", "maxmemory", 0)]
        limit_set, refused, limit_off, *replies = raw.pipeline([*evict, *then])
        assert limit_set == limit_off == "OK"
        assert isinstance(refused, ErrorReply)
        assert refused.startswith("OOM")
        return replies


class Waiters:
    """Connections of one test that wait for locks. A wait has begun when the call returns, so the calls give the
    order of arrival; the answer is read() by the test."""

    def __init__(self, server, protocol=2):
        self._server, self._protocol = server, protocol
        self._stack = ExitStack()
        self.admin = self.connect()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()

    def connect(self, db=0):
        return self._stack.enter_context(RawClient(self._server, self._protocol, db))

    def call(self, *words):
        return self.admin.call(*words)

    def acquire(self, owner, *options, key="lock", px=60_000):
        return self.call("LOCK.ACQUIRE", key, owner, "PX", px, *options)

    def release(self, owner, *options, key="lock"):
        return self.call("LOCK.RELEASE", key, owner, *options)

    def wait(self, owner, *options, key="lock", px=60_000, wait_ms=0, client=None):
        return self.begin(client, "LOCK.ACQUIRE", key, owner, "PX", px, "WAIT", wait_ms, *options)

    def wait_for_all(self, keys, owner, *options, px=60_000, wait_ms=0, client=None):
        return self.begin(client, "LOCK.MACQUIRE", len(keys), *keys, owner, "PX", px, "WAIT", wait_ms, *options)

    def begin(self, client, *words):
        client = client or self.connect()
        before = self.number()
        client.send(*words)
        eventually(lambda: self.number() == before + 1, message="the client does not wait")
        return client

    def number(self):
        return self.metric("waiters")

    def metric(self, name):
        text = self.call("INFO", "keyward_lock").decode()
        return int(dict(line.split(":", 1) for line in text.splitlines() if ":" in line)[f"keyward_lock_{name}"])

    def info(self, key="lock"):
        return {name.decode(): value for name, value in fields(self.call("LOCK.INFO", key)).items()}

    def owners(self, key="lock"):
        """Those who hold it, in the order of their grants."""
        return [holder[0].decode() for holder in self.info(key)["holders"]]

    def queue(self, key="lock"):
        """The owners that wait, in order."""
        return [waiter[0].decode() for waiter in self.info(key)["waiters"]]


def is_error(reply, prefix):
    return isinstance(reply, ErrorReply) and reply.startswith(prefix)


def answered_once(client):
    """The next thing that comes is the reply to the next command."""
    return not client.is_answered() and client.call("ECHO", "next") == b"next"
