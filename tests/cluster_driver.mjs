// Sends commands through node-redis to a cluster, for tests/test_cluster_clients.py. Standard input is JSON: the port of a node, and
// commands, each with its first key or null. Standard output is a JSON list: replies, and errors as {"error": text}.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const [, , modules] = process.argv;
const { createCluster } = createRequire(modules)("redis");
const { port, commands, everywhere } = JSON.parse(readFileSync(0, "utf8"));
const cluster = await createCluster({ rootNodes: [{ url: `redis://127.0.0.1:${port}` }] }).connect();
const attempt = (promise) => promise.catch((error) => ({ error: error.message }));
const replies = [];
for (const [key, words] of commands) {
  replies.push(await attempt(cluster.sendCommand(key ?? undefined, false, words)));
}
if (everywhere) {
  // What the tip request_policy:all_shards asks for, by hand.
  const ask = async (node) => (await cluster.nodeClient(node)).sendCommand(everywhere);
  replies.push((await Promise.all(cluster.masters.map(ask))).reduce((sum, count) => sum + count));
}
console.log(JSON.stringify(replies));
cluster.destroy();
