// Runs examples/cache_aside/cache_aside.mjs for the tests: JSON lines on stdin and stdout, bytes in base64.
//
//   in   {"get": key, "id": n, "tags": [...]}             one call of cached()
//   out  {"load": key, "id": n}                           it asks the origin, which the test is
//   in   {"loaded": bytes | null, "id": n}  or  {"failed": text, "id": n}
//   out  {"value": bytes | null, "id": n}  or  {"error": name, "message": text, "id": n}

import { createInterface } from "node:readline";
import { cached, connect } from "../examples/cache_aside/cache_aside.mjs";

const redis = await connect(process.argv[2]);
const loads = new Map();

const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

function load(key, id) {
  return new Promise((resolve, reject) => {
    loads.set(id, { resolve, reject });
    say({ load: key, id });
  });
}

async function get({ get: key, id, tags }) {
  try {
    const value = await cached(redis, key, () => load(key, id), 300, tags);
    say({ value: value && value.toString("base64"), id });
  } catch (error) {
    say({ error: error.constructor.name, message: error.message, id });
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const message = JSON.parse(line);
  if ("get" in message) get(message);
  else if ("failed" in message) loads.get(message.id).reject(new Error(message.failed));
  else loads.get(message.id).resolve(message.loaded && Buffer.from(message.loaded, "base64"));
}
process.exit(); // The pool would have it wait for its next cleanup.
