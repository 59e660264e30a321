// A small API behind the limiter.   node app.mjs
//
// A hundred units a minute for each customer, or for each address that shows no key of a customer. A write costs ten.

import { fileURLToPath } from "node:url";
import express from "express";
import { clientAddress, connect, rateLimit } from "./middleware.mjs";

const LIMITS = [{ name: "minute", count: 100, seconds: 60 }];
const CUSTOMERS = new Map([
  ["key-of-alice", "alice"],
  ["key-of-bob", "bob"],
]);

function caller(req) {
  if (req.path === "/health") return null;
  // Only a key that is known: else each invented one would be a new customer with a full limit.
  const customer = CUSTOMERS.get(req.get("x-api-key"));
  return customer ? `customer:${customer}` : `address:${clientAddress(req)}`;
}

const cost = (req) => (["GET", "HEAD"].includes(req.method) ? 1 : 10);

const answer = (req, res) => res.json({ path: req.path });

export function createApp(redis, limits = LIMITS, options = {}) {
  const app = express();
  app.set("trust proxy", "loopback"); // Whose X-Forwarded-For is believed, as uvicorn has it by default.
  app.use(rateLimit({ redis, limits, key: caller, cost, ...options }));
  app.get("/health", answer);
  app.route("/items").get(answer).post(answer);
  return app;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const redis = await connect(process.env.REDIS_URL ?? "redis://127.0.0.1:6379");
  createApp(redis).listen(Number(process.env.PORT ?? 8000), "127.0.0.1");
}
