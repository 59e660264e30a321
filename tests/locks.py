"""Locks for tests: many of them, and a way to evict them all at once."""

from raw_client import ErrorReply, RawClient

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
