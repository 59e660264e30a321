// RATELIMIT.CHECK before each request of an Express application: node-redis.
//
// The same for Starlette and FastAPI is middleware.py: the same names in the same order.

import { isIPv6 } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "redis";

const QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded";

// A limit: { name, count, seconds, algorithm = "SLIDING", burst }. Clients read the name: plain words, each name once.
// Whole seconds: RateLimit-Policy has no finer ones. `burst` with GCRA only.
function words({ count, seconds, algorithm = "SLIDING", burst }) {
  return [algorithm, `${count}`, "EX", `${seconds}`, ...(burst ? ["BURST", `${burst}`] : [])];
}

export async function connect(url, timeoutMs = 500) {
  const client = createClient({
    url,
    disableOfflineQueue: true, // Fail at once while there is no server.
    // A server that is silent for so long is gone, pings included. The strategy is needed to connect again after it.
    socket: { socketTimeout: 2_000, reconnectStrategy: (retries) => Math.min(50 * 2 ** retries, 2_000) },
    pingInterval: 1_000,
  });
  client.on("error", (error) => console.warn(`redis: ${error.message}`)); // An error nobody listens to ends the process.
  const connected = client.connect().catch(() => {}); // Told above.
  await Promise.race([connected, sleep(timeoutMs)]); // A service that passes without Redis also starts without it.
  return client;
}

/** The address of the peer; of IPv6 its /64, since one customer has at least all of that. */
export function clientAddress(req) {
  if (!isIPv6(req.ip)) return req.ip;
  if (req.ip.includes(".")) return req.ip.slice(req.ip.lastIndexOf(":") + 1); // IPv4, mapped.
  const [left, right = []] = req.ip.split("::").map((half) => half.split(":").filter(Boolean));
  const groups = [...left, ...Array(8 - left.length - right.length).fill("0"), ...right].slice(0, 4);
  return `${groups.map((group) => parseInt(group, 16).toString(16)).join(":")}::/64`;
}

export function rateLimit({
  redis,
  limits,
  key = clientAddress, // Who is counted; null is not limited.
  cost = () => 1,
  failOpen = true,
  timeoutMs = 500,
}) {
  const policy = limits.map(({ name, count, seconds }) => `"${name}";q=${count};w=${seconds}`).join(", ");

  async function check(key, cost) {
    const command = ["RATELIMIT.CHECK", `ratelimit:${key}`, ...limits.flatMap(words), "COST", `${cost}`];
    return Promise.race([redis.sendCommand(command), late(timeoutMs)]);
  }

  return async function rateLimitMiddleware(req, res, next) {
    const counted = key(req);
    if (counted == null) return next();
    const units = cost(req);
    let reply;
    try {
      reply = await check(counted, units);
    } catch (error) {
      console.warn(`RATELIMIT.CHECK: ${error.message}`);
      return failOpen ? next() : problem(res, 503, "Service Unavailable");
    }

    const [allowed, , remaining, retryAfterMs, nextMs, , index] = reply;
    res.append("RateLimit-Policy", policy); // They are lists: a second limiter adds its own.
    if (retryAfterMs === -1) return problem(res, 413, "Content Too Large"); // However long it waits: it must ask for less.
    const name = limits[index]?.name; // -1: banned, by no limit.
    if (name !== undefined) res.append("RateLimit", `"${name}";r=${remaining};t=${Math.ceil(nextMs / 1000)}`);
    if (!allowed) {
      res.set("Retry-After", `${Math.ceil(retryAfterMs / 1000)}`);
      const violated = name === undefined ? [] : [name];
      return problem(res, 429, "Quota Exceeded", { type: QUOTA_EXCEEDED, "violated-policies": violated });
    }
    return next();
  };
}

async function late(ms) {
  await sleep(ms, undefined, { ref: false });
  throw new Error(`no reply in ${ms} ms`);
}

/** RFC 9457. */
function problem(res, status, title, members = {}) {
  res.status(status).type("application/problem+json").json({ title, status, ...members });
}
