// Serves examples/ratelimit/app.mjs for the tests, as ratelimit_driver.py does its app.

import { createApp } from "../examples/ratelimit/app.mjs";
import { connect } from "../examples/ratelimit/middleware.mjs";

const [, , url, timeoutMs, limits, options] = process.argv;
const { fail_open: failOpen } = JSON.parse(options);
const redis = await connect(url, Number(timeoutMs));
const app = createApp(redis, JSON.parse(limits), { failOpen, timeoutMs: Number(timeoutMs) });
const server = app.listen({ port: 0, host: "127.0.0.1", backlog: 1024 }, () => console.log(server.address().port));
