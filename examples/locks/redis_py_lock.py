"""redis-py's Lock on LOCK.ACQUIRE: the same interface, with a queue instead of polling and with a fencing token.

lock = redis.lock("report:nightly", timeout=30, lock_class=QueuedLock)
with lock:
    write_report(fence=lock.fencing_token)
"""

import threading
import time
import uuid
from types import SimpleNamespace

from redis.exceptions import LockNotOwnedError
from redis.lock import Lock


class _Hold(threading.local):
    """What one thread holds. Unlike in redis-py, a thread that has acquired nothing finds that out without an AttributeError."""

    token = None
    fencing_token = None


class QueuedLock(Lock):
    """A lock whose waiters are served in the order of their arrival. `timeout`, its lease, is required.

    What the caller sees is redis-py's Lock; README.md lists where the two differ. redis-py calls the random value of one
    attempt its token; here that is the owner, and the token that the server grants is `fencing_token`.
    """

    def __init__(self, redis, name, timeout=None, *args, **kwargs):
        """As redis-py's. Raises ValueError without a `timeout` of a millisecond or more."""
        if timeout is None or _milliseconds(timeout) < 1:
            raise ValueError("a lock needs a timeout of at least 0.001 s: without one, who dies would hold it for ever")
        super().__init__(redis, name, timeout, *args, **kwargs)
        self.local = _Hold() if self.thread_local else SimpleNamespace(token=None, fencing_token=None)

    def register_scripts(self):
        """There are none."""

    @property
    def fencing_token(self):
        """The number to give to what the lock protects. Each is larger than every one before. None while not acquired."""
        return self.local.fencing_token

    def acquire(self, sleep=None, blocking=None, blocking_timeout=None, token=None):
        """True once the lock is acquired, False if it was not to be had in time. `sleep` has no meaning here."""
        owner = uuid.uuid4().hex.encode() if token is None else self.redis.get_encoder().encode(token)
        blocking = self.blocking if blocking is None else blocking
        limit = self.blocking_timeout if blocking_timeout is None else blocking_timeout
        granted = self._wait(owner, limit) if blocking else self._try(owner)
        if granted is None:
            return False
        self.local.token, self.local.fencing_token = owner, granted
        return True

    def _wait(self, owner, limit):
        """Waits in slices: the server has to answer before the client's socket timeout gives the connection up.

        Within a slice the server keeps the place in the queue. Between two slices it is lost, and the next one begins at the
        end of the queue. So give the client a socket timeout of more than twice the longest wait where the order matters.
        """
        socket_timeout = self.redis.get_connection_kwargs().get("socket_timeout")
        slice_ms = max(1, _milliseconds(socket_timeout / 2)) if socket_timeout else None
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            left_ms = None if deadline is None else _milliseconds(deadline - time.monotonic())
            if left_ms is not None and left_ms < 1:
                return self._try(owner)
            # WAIT 0 waits for as long as it takes.
            wait_ms = min((ms for ms in (slice_ms, left_ms) if ms is not None), default=0)
            granted = self._try(owner, "WAIT", wait_ms)
            if granted is not None or wait_ms == left_ms:
                return granted

    def _try(self, owner, *options):
        """The fencing token or None. When redis-py repeats it after a lost reply, the same owner gets the same token."""
        return self.redis.execute_command("LOCK.ACQUIRE", self.name, owner, "PX", self._lease_ms, *options)

    @property
    def _lease_ms(self):
        return _milliseconds(self.timeout)

    def locked(self):
        """Whether anybody holds the lock."""
        reply = self.redis.execute_command("LOCK.INFO", self.name, NEVER_DECODE=True)
        fields = reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))
        return fields[b"mode"] != b"free"

    def owned(self):
        """Whether this instance holds the lock (in this thread, if `thread_local`)."""
        held = self.fencing_token
        return held is not None and self.redis.execute_command("LOCK.VALIDATE", self.name, held) == 1

    def do_release(self, expected_token):
        held, self.local.fencing_token = self.local.fencing_token, None
        if not self.redis.execute_command("LOCK.RELEASE", self.name, expected_token, "TOKEN", held):
            raise LockNotOwnedError("Cannot release a lock that's no longer owned", lock_name=self.name)

    def do_extend(self, additional_time, replace_ttl):
        lease_ms = _milliseconds(additional_time)
        if not replace_ttl:
            # Should the lock change hands after this look, LOCK.EXTEND refuses. -2: it is free.
            lease_ms += max(0, self.redis.pttl(self.name))
        return self._lengthen(lease_ms, "extend")

    def do_reacquire(self):
        return self._lengthen(self._lease_ms, "reacquire")

    def _lengthen(self, lease_ms, what):
        owner, held = self.local.token, self.local.fencing_token
        if not self.redis.execute_command("LOCK.EXTEND", self.name, owner, "PX", lease_ms, "TOKEN", held):
            raise LockNotOwnedError(f"Cannot {what} a lock that's no longer owned", lock_name=self.name)
        return True


def _milliseconds(seconds):
    return int(seconds * 1000)
