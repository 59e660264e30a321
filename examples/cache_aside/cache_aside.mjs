// Cache-aside with single flight, stale-while-revalidate, tags and negative answers: node-redis.
//
// The same in Python is cache_aside.py, in Go cache_aside.go: the same names in the same order.

import { createClientPool, RESP_TYPES } from "redis";

const WAIT_MS = 5_000; // Longer than a load takes: who waited in vain asks the origin.
const RETRY_MS = 5_000; // An origin that failed is left alone for so long.
const NEGATIVE_S = 30; // That the origin has nothing is remembered for so long.
const MESSAGE_BYTES = 1_024; // The longest MSG that CACHE.FAIL takes.

const BYTES = { typeMapping: { [RESP_TYPES.BLOB_STRING]: Buffer } }; // Values are bytes: no strings.

/** Somebody else's load failed moments ago, and there is nothing stale to serve. */
export class OriginDown extends Error {}

export async function connect(url) {
  // A pool, and for this alone: a FETCH that waits holds its connection, and with it whatever is sent after it.
  const pool = createClientPool(
    {
      url,
      // Fail at once while there is no server; else commands would queue up until it is back.
      disableOfflineQueue: true,
      // The read timeout must outlast WAIT. Pings keep idle connections from running into it, and a
      // strategy of our own is needed to connect again after it.
      socket: { socketTimeout: WAIT_MS + 1_000, reconnectStrategy: (retries) => Math.min(50 * 2 ** retries, 2_000) },
      pingInterval: WAIT_MS,
    },
    { maximum: 100 },
  );
  pool.on("error", (error) => console.warn(`redis: ${error.message}`)); // An error nobody listens to ends the process.
  return pool.connect();
}

/** The value of key: a Buffer, or null if the origin has nothing. `load()` asks the origin and answers the same. */
export async function cached(redis, key, load, ttl = 300, tags = []) {
  const [status, value, token] = await redis.sendCommand(["CACHE.FETCH", key, "WAIT", `${WAIT_MS}`], BYTES);
  switch (`${status}`) {
    case "HIT":
    case "STALE":
      return value;
    case "NONE":
      return null;
    case "ERROR":
      throw new OriginDown(`${value}`);
    case "BUSY":
      return load(); // Waited in vain: answer this request, and leave the cache alone.
  }

  let fresh;
  try {
    fresh = await load(); // MISS or REFRESH: this caller was elected.
  } catch (error) {
    if (token) {
      const message = Buffer.from(`${error}`).subarray(0, MESSAGE_BYTES);
      await settle(redis, "CACHE.FAIL", key, token, "MSG", message, "RETRY", `${RETRY_MS}`);
    }
    if (`${status}` === "REFRESH") return value;
    throw error;
  }
  const tagged = tags.length ? ["TAGS", `${tags.length}`, ...tags] : [];
  if (token && fresh == null) {
    await settle(redis, "CACHE.FILLNIL", key, token, "EX", `${NEGATIVE_S}`, ...tagged);
  } else if (token) { // Without one too many loads are under way: nothing to fill.
    await settle(redis, "CACHE.FILL", key, token, fresh, "EX", `${ttl}`, "GRACE", `${ttl}`, ...tagged);
  }
  return fresh;
}

/** Ends a lease. The answer is known by now, so no trouble here may cost it; a lease that stays ends by itself. */
async function settle(redis, ...command) {
  try {
    await redis.sendCommand(command); // 0: the lease was lost, to an update for instance. Nothing to do.
  } catch (error) {
    console.warn(`${command[0]}: ${error.message}`);
  }
}
