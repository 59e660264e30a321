"""Filling many keys, and nothing old: what is invalidated after its lease began is not stored."""

BATCH = 200


def batches(keys):
    return (keys[at : at + BATCH] for at in range(0, len(keys), BATCH))


def elected(redis, keys):
    """The keys that have no fresh value and that nobody loads: key -> token."""
    with redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.execute_command("CACHE.FETCH", key)  # No WAIT: in a pipeline it would hold up all behind it.
        answers = pipe.execute()
    return {key: token for key, (_, _, token) in zip(keys, answers, strict=True) if token}


def fill(redis, tokens, found):
    """`found`: key -> the value and the options of CACHE.FILL. What is not in it is given up. How many were stored."""
    with redis.pipeline(transaction=False) as pipe:
        for key, token in tokens.items():
            if key in found:
                pipe.execute_command("CACHE.FILL", key, token, *found[key])
            else:
                pipe.execute_command("CACHE.FAIL", key, token)  # Else readers wait until the lease is over.
        answers = pipe.execute()
    return sum(answer for key, answer in zip(tokens, answers, strict=True) if key in found)


def give_up(redis, tokens):
    fill(redis, tokens, {})
