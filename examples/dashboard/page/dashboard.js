// Draws the state that /state tells, once a second. Names come from the server and may hold anything: they become text
// nodes, never markup.

const REFRESH_MS = 1000;
const SHOWN = 16; // rows of a kind
const HISTORY_MS = 300_000;
const SVG = "http://www.w3.org/2000/svg";

const id = (name) => document.getElementById(name);
const integer = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

const number = (value) => integer.format(value);
const rate = (value) => (value < 10 ? value.toFixed(1) : number(value));
// Rounded down: 100 is all of them. The millionth makes up for what floating point lacks.
const percent = (ratio) => (ratio === 1 ? "100" : (Math.floor(ratio * 1000 + 1e-6) / 10).toFixed(1));
const count = (value, one, many) => `${number(value)} ${value === 1 ? one : many}`;

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${value < 10 && unit ? value.toFixed(1) : number(value)} ${units[unit]}`;
}

function duration(ms) {
  if (ms < 100_000) return `${(Math.ceil(ms / 100) / 10).toFixed(1)} s`;
  if (ms < 6_000_000) return `${number(ms / 60_000)} min`;
  return ms < 360_000_000 ? `${number(ms / 3_600_000)} h` : `${number(ms / 86_400_000)} days`;
}

const age = (ms) => (ms < 100_000 ? `${number(ms / 1000)} s` : duration(ms));

function span(ms) {
  for (const [unit, size] of [["d", 86_400_000], ["h", 3_600_000], ["min", 60_000], ["s", 1000]]) {
    if (ms % size === 0) return `${number(ms / size)} ${unit}`;
  }
  return `${number(ms)} ms`;
}

// The document

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// A name reads from left to right on its own, whatever stands around it.
function named(text, className) {
  const node = element("bdi", className ?? "name", text);
  node.title = text;
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function tell(name, text) {
  const node = id(name);
  node.hidden = !text;
  say(node, text ?? "");
}

// One child for each item, which stays the same element as long as the item is there.
function list(parent, items, keyOf, make, update) {
  const before = new Map(Array.from(parent.children, (child) => [child.dataset.key, child]));
  const taken = new Map();
  items.forEach((item, place) => {
    // Two that were cut short may look alike, and an owner may wait twice.
    const name = keyOf(item);
    taken.set(name, (taken.get(name) ?? 0) + 1);
    const key = `${taken.get(name)} ${name}`;
    let child = before.get(key);
    if (child) {
      before.delete(key);
    } else {
      child = make(item);
      child.dataset.key = key;
    }
    if (parent.children[place] !== child) parent.insertBefore(child, parent.children[place] ?? null);
    update?.(child, item);
  });
  for (const child of before.values()) child.remove();
}

function share(node, value) {
  node.style.setProperty("--share", Math.min(1, Math.max(0, value)).toFixed(4));
}

// The most telling rows, in an order that does not jump.
function chosen(rows, weight, order) {
  return [...rows].sort((a, b) => weight(b) - weight(a)).slice(0, SHOWN).sort(order);
}

const byKey = (a, b) => (a.key < b.key ? -1 : 1);

function more(part, { total }, shown) {
  tell(`${part}-more`, total > shown ? `About ${number(total - shown)} more are not shown.` : "");
}

// The last minutes

function svg(name, attributes) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function canvas(name) {
  const box = id(name);
  const { width, height } = box.getBoundingClientRect();
  box.setAttribute("viewBox", `0 0 ${width} ${height}`);
  return { box, width, height };
}

const AXIS = 44; // for the labels at the right

// What is seen of the history, as [share of the axis, value].
function points({ history, unix_ms: now }, values) {
  return history.unix_ms.map((at, i) => [1 - (now - at) / HISTORY_MS, values[i]]).filter(([at]) => at >= 0);
}

// Where nothing is known, the line has a gap.
function runs(seen) {
  const found = [[]];
  for (const point of seen) {
    if (point[1] === null) found.push([]);
    else found.at(-1).push(point);
  }
  return found.filter((run) => run.length);
}

function drawRatio(state) {
  const { box, width, height } = canvas("line");
  const seen = points(state, state.history.hit_ratio);
  const known = seen.flatMap(([, ratio]) => ratio ?? []);
  const floor = known.length ? Math.min(0.9, Math.floor(Math.min(...known) * 10) / 10) : 0;
  const [top, bottom] = [8, height - 4];
  const y = (ratio) => bottom - ((bottom - top) * (ratio - floor)) / (1 - floor);
  const place = ([at, ratio]) => [at * (width - AXIS), y(ratio)];
  const parts = [];
  for (const ratio of [1, (1 + floor) / 2, floor]) {
    parts.push(svg("line", { class: "grid", x1: 0, x2: width - AXIS, y1: y(ratio), y2: y(ratio) }));
    const label = svg("text", { x: width, y: y(ratio) + 4, "text-anchor": "end" });
    label.textContent = `${number(ratio * 100)} %`;
    parts.push(label);
  }
  for (const run of runs(seen)) {
    const line = run.map(place);
    parts.push(svg("path", { class: "area", d: `${path(line)}L${line.at(-1)[0]} ${bottom}L${line[0][0]} ${bottom}Z` }));
    parts.push(svg("path", { class: "line", d: path(line) }));
  }
  const last = seen.at(-1);
  if (last && last[1] !== null) {
    const [cx, cy] = place(last);
    parts.push(svg("circle", { class: "point", cx, cy, r: 4 }));
  }
  box.replaceChildren(...parts);
  if (known.length) {
    const [low, high] = [Math.min(...known), Math.max(...known)];
    box.setAttribute("aria-label", `Hit ratio of the last five minutes: from ${percent(low)} to ${percent(high)} percent`);
  }
}

function drawReads(state) {
  const { box, width, height } = canvas("bars");
  const seen = points(state, state.history.reads);
  const most = Math.max(1, ...seen.map(([, reads]) => reads));
  // Each bar is as wide as the time that it stands for.
  const bars = seen.slice(1).map(([at, reads], i) => {
    const [from, to] = [seen[i][0] * (width - AXIS), at * (width - AXIS)];
    const tall = ((height - 8) * (reads ?? 0)) / most;
    return `M${from.toFixed(1)} ${height}v${-tall.toFixed(1)}H${Math.max(from + 0.5, to - 0.8).toFixed(1)}v${tall.toFixed(1)}z`;
  });
  const label = svg("text", { x: width, y: 14, "text-anchor": "end" });
  label.textContent = `${rate(most)}/s`;
  box.replaceChildren(svg("path", { class: "bar", d: bars.join("") }), label);
  box.setAttribute("aria-label", `Cache reads a second in the last five minutes: at most ${rate(most)}`);
}

function drawNow(state) {
  const { history } = state;
  const last = history.hit_ratio.at(-1) ?? null;
  say(id("ratio"), last === null ? "–" : percent(last));
  id("ratio").parentElement.classList.toggle("unknown", last === null);
  const overall = history.hit_ratio_overall;
  const since = history.unix_ms.length ? state.unix_ms - history.unix_ms[0] : 0;
  say(id("ratio-overall"), overall === null ? "No CACHE read has been seen yet." : `${percent(overall)} % over ${age(since)}`);
  drawRatio(state);
  drawReads(state);
}

// Counters

function readouts({ counters, history, server, unix_ms: now }) {
  const lately = `in the last ${age(now - (history.unix_ms[0] ?? now))}`;
  const full = server.maxmemory ? server.used_memory / server.maxmemory : 0;
  const [reads, commands] = [history.reads, history.commands].map((rates) => rates.at(-1) ?? null);
  return [
    { name: "Cache reads", value: reads === null ? "–" : `${rate(reads)}/s`, note: commands === null ? "" : `${rate(commands)} commands/s in all` },
    {
      name: "Stampedes suppressed", value: number(counters.cache_stampedes_suppressed),
      note: `${number(history.suppressed)} ${lately}`,
    },
    {
      name: "Loads in flight", value: number(counters.cache_leases),
      note: `${count(counters.cache_waiters, "caller waits", "callers wait")}`,
    },
    {
      name: "Lease timeouts", value: number(counters.cache_lease_timeouts), warn: history.timeouts > 0,
      note: `${number(history.timeouts)} ${lately}`,
    },
    {
      name: "Keys", value: number(server.keys),
      note: `${count(counters.cache_tagged_keys, "has", "have")} tags, in all databases`,
    },
    {
      name: "Invalidated keys", value: number(counters.cache_invalidated_keys),
      note: `by ${count(counters.cache_invalidations, "invalidation", "invalidations")}`,
    },
    {
      name: "Memory", value: bytes(server.used_memory), share: full, warn: !server.maxmemory,
      note: server.maxmemory ? `${percent(full)} % of ${bytes(server.maxmemory)}` : "maxmemory is not set",
    },
    { name: "Evicted keys", value: number(server.evicted_keys), note: String(server.maxmemory_policy) },
  ];
}

function makeReadout({ name }) {
  const box = element("div");
  box.append(element("dt", "", name), element("dd", "value"), element("dd", "note"));
  return box;
}

function updateReadout(box, { value, note, warn, share: part }) {
  box.classList.toggle("warn", Boolean(warn));
  box.classList.toggle("metered", part > 0);
  share(box, part ?? 0);
  say(box.children[1], value);
  say(box.children[2], note);
}

// Locks and slots: who is in, then who waits, in the order of arrival

function makeStrip(row) {
  const item = element("li");
  const head = element("div", "head");
  head.append(named(row.key), element("span", "mode"), element("span", "token"));
  item.append(head, element("ol", "line"));
  return item;
}

function makeCell({ className, label }) {
  const cell = element("li", className);
  cell.append(named(label, "owner"), element("span", "time"));
  return cell;
}

function updateCell(cell, { className, time, left }) {
  cell.className = className;
  say(cell.lastChild, time);
  if (left === undefined) return;
  // How long the lease is, is not told: the longest that was seen of it.
  cell.lease = Math.max(cell.lease ?? 0, left);
  share(cell, cell.lease ? left / cell.lease : 0);
}

function strip(item, mode, token, cells) {
  say(item.querySelector(".mode"), mode);
  say(item.querySelector(".token"), token);
  list(item.lastChild, cells, (cell) => cell.key, makeCell, updateCell);
}

const rest = (key, hidden, className) =>
  hidden > 0 ? [{ key, className, label: `${number(hidden)} more`, time: "" }] : [];

function updateLock(item, lock) {
  const free = lock.mode === "permits" ? Math.max(0, Math.min(lock.permits, SHOWN) - lock.holding) : 0;
  strip(item, lock.mode === "permits" ? `${lock.holding} of ${number(lock.permits)} permits` : lock.mode, `token ${lock.token}`, [
    ...lock.holders.map((holder) => ({
      key: `held ${holder.token} ${holder.owner}`, className: "held", left: holder.ttl_ms,
      label: holder.owner + (holder.holds > 1 ? ` ×${holder.holds}` : ""), time: duration(holder.ttl_ms),
    })),
    ...rest("held more", lock.holding - lock.holders.length, "held"),
    ...Array.from({ length: free }, (_, i) => ({ key: `free ${i}`, className: "free", label: "free", time: "" })),
    ...lock.waiters.map((waiter, place) => ({
      key: `waits ${waiter.owner}`, className: place ? "waits" : "waits first", label: waiter.owner,
      time: (waiter.mode === lock.mode ? "" : `${waiter.mode} `) + duration(waiter.waited_ms),
    })),
    ...rest("waits more", lock.waiting - lock.waiters.length, "waits"),
  ]);
}

function updateSlots(item, row) {
  const free = row.limit === null ? 0 : Math.max(0, Math.min(row.limit, SHOWN) - row.in_use);
  strip(item, row.limit === null ? `${number(row.in_use)} in use` : `${number(row.in_use)} of ${number(row.limit)} in use`, "", [
    ...row.slots.map((slot) => ({
      key: `held ${slot.id}`, className: "held", left: slot.ttl_ms, label: slot.id, time: duration(slot.ttl_ms),
    })),
    ...rest("held more", row.in_use - row.slots.length, "held"),
    ...Array.from({ length: free }, (_, i) => ({ key: `free ${i}`, className: "free", label: "free", time: "" })),
    ...row.waiters.map((waiter, place) => ({
      key: `waits ${waiter.id}`, className: place ? "waits" : "waits first", label: waiter.id, time: duration(waiter.waited_ms),
    })),
    ...rest("waits more", row.waiting - row.waiters.length, "waits"),
  ]);
}

function drawStrips(part, rows, update) {
  const shown = chosen(rows.rows, (row) => row.waiting, byKey);
  list(id(part), shown, (row) => row.key, makeStrip, update);
  id(`${part}-empty`).hidden = shown.length > 0;
  more(part, rows, shown.length);
}

// Limiters

function makeLimiter(row) {
  const item = element("li");
  const head = element("div", "head");
  head.append(named(row.key), element("span", "ban"), element("span", "queue"));
  item.append(head, element("div", "meters"));
  return item;
}

function makeMeter() {
  const meter = element("div", "meter");
  meter.append(element("span", "left"), element("span", "bar"), element("span", "window"));
  meter.children[1].role = "meter";
  return meter;
}

function updateMeter(key) {
  return (meter, limit) => {
    const [left, bar, about] = meter.children;
    const known = limit.limit !== null;
    meter.classList.toggle("spent", known && limit.remaining === 0);
    meter.classList.toggle("unknown", !known);
    say(left, known ? `${number(limit.remaining)} of ${number(limit.limit)} left` : `${number(limit.used)} used`);
    say(about, `${limit.algorithm} ${span(limit.window_ms)}${limit.next_ms ? `, more in ${duration(limit.next_ms)}` : ""}`);
    bar.hidden = !known;
    if (!known) return;
    share(bar, limit.remaining / limit.limit);
    bar.setAttribute("aria-label", `${key}, ${limit.algorithm} ${span(limit.window_ms)}`);
    bar.setAttribute("aria-valuemin", 0);
    bar.setAttribute("aria-valuemax", limit.limit);
    bar.setAttribute("aria-valuenow", limit.remaining);
  };
}

function updateLimiter(item, row) {
  const [ban, waiting] = [item.querySelector(".ban"), item.querySelector(".queue")];
  say(ban, row.banned_ms ? `banned for ${duration(row.banned_ms)}` : "");
  say(waiting, row.waiting ? `${count(row.waiting, "waits", "wait")}, the longest for ${duration(row.waited_ms)}` : "");
  list(item.lastChild, row.limits, (limit) => `${limit.algorithm} ${limit.window_ms}`, makeMeter, updateMeter(row.key));
}

const spent = ({ limits }) =>
  Math.max(0, ...limits.map((limit) => (limit.limit ? 1 - limit.remaining / limit.limit : limit.used / (limit.used + 1000))));

function drawLimiters(limiters) {
  const shown = chosen(limiters.rows, (row) => (row.banned_ms ? 2 : 0) + (row.waiting ? 1 : 0) + spent(row), byKey);
  list(id("limiters"), shown, (row) => row.key, makeLimiter, updateLimiter);
  id("limiters-empty").hidden = shown.length > 0;
  id("limiters-unknown").hidden = !shown.some((row) => row.limits.some((limit) => limit.limit === null));
  more("limiters", limiters, shown.length);
}

// Tables

function makeRow(...cells) {
  const row = element("tr");
  row.append(...cells);
  return row;
}

function headed(content) {
  const cell = element("th");
  cell.scope = "row";
  cell.append(content);
  return cell;
}

function makeTag({ tag }) {
  const button = element("button");
  button.type = "button";
  button.append(named(tag));
  button.addEventListener("click", () => lookUp(tag));
  return makeRow(headed(button), element("td"), element("td", "bar"), element("td"));
}

// By the clock of the server and that of the page.
const ago = (ms, now) => (ms ? `${age(Math.max(0, now - ms))} ago` : "never");

function drawTags({ rows }, now) {
  const shown = chosen(rows, (row) => row.keys, (a, b) => b.keys - a.keys || (a.tag < b.tag ? -1 : 1));
  const most = Math.max(1, ...shown.map((row) => row.bytes));
  list(id("tags"), shown, (row) => row.tag, makeTag, (line, row) => {
    say(line.children[1], number(row.keys));
    say(line.children[2], bytes(row.bytes));
    share(line.children[2], row.bytes / most);
    say(line.children[3], row.invalidations ? `${number(row.invalidations)}×, ${ago(row.last_invalidated_ms, now)}` : "never");
  });
  id("tags-table").hidden = shown.length === 0;
  id("tags-empty").hidden = shown.length > 0;
  tell("tags-more", rows.length > shown.length ? `${number(rows.length - shown.length)} more tags of hot keys are not shown.` : "");
}

function drawHot({ rows }) {
  const shown = rows.slice(0, SHOWN);
  const most = Math.max(1, ...shown.map((row) => row.reads));
  list(id("hot"), shown, (row) => row.key, (row) => makeRow(headed(named(row.key)), element("td", "bar")), (line, row) => {
    say(line.children[1], number(row.reads));
    share(line.children[1], row.reads / most);
  });
  id("hot-table").hidden = shown.length === 0;
  id("hot-empty").hidden = shown.length > 0;
}

function makeQueue({ key }) {
  const dirty = element("td", "dirty");
  dirty.append(element("span", "count"), element("span", "parts"));
  return makeRow(headed(named(key)), dirty, ...Array.from({ length: 4 }, () => element("td")));
}

function drawQueues(queues) {
  const shown = chosen(queues.rows, (row) => row.dirty + row.dead, byKey);
  const most = Math.max(1, ...shown.map((row) => row.dirty));
  list(id("queues"), shown, (row) => row.key, makeQueue, (line, row) => {
    const [, dirty, oldest, dead, written, joined] = line.children;
    const flying = row.in_flight ? `, ${number(row.in_flight)} of them at a worker` : "";
    say(dirty.firstChild, number(row.dirty) + flying);
    share(dirty.lastChild, row.dirty / most);
    dirty.lastChild.style.setProperty("--flying", row.dirty ? (row.in_flight / row.dirty).toFixed(4) : 0);
    say(oldest, row.dirty ? duration(row.oldest_ms) : "–");
    say(dead, number(row.dead));
    dead.classList.toggle("bad", row.dead > 0);
    say(written, number(row.cleaned));
    say(joined, number(row.coalesced));
  });
  id("queues-table").hidden = shown.length === 0;
  id("queues-empty").hidden = shown.length > 0;
  more("queues", queues, shown.length);
}

// The search

let searched = "";

function lookUp(tag) {
  id("tag").value = tag;
  searched = tag;
  refresh();
}

function drawFound(found, now) {
  const box = id("found");
  box.hidden = !found || !searched;
  if (box.hidden) return;
  const lines = [];
  const title = element("p");
  title.append(named(found.tag));
  lines.push(title);
  if (found.problem) {
    lines.push(element("p", "refused", found.problem));
  } else {
    const times = found.invalidations ? `, invalidated ${number(found.invalidations)}×, last ${ago(found.last_invalidated_ms, now)}` : "";
    title.append(` is on ${count(found.keys, "key", "keys")}, ${bytes(found.bytes)} of index${times}`);
    const keys = element("ul", "some");
    for (const key of found.some) {
      const item = element("li");
      item.append(named(key));
      keys.append(item);
    }
    lines.push(keys);
    if (found.more) lines.push(element("p", "quiet", "and others"));
  }
  box.replaceChildren(...lines);
}

// The doctor

const MARKS = { "!!": "to look at", "--": "too little to tell", ok: "fine" };

function makeFinding({ mark }) {
  const item = element("li", mark === "!!" ? "complaint" : "");
  item.append(element("strong"), element("span", "what"), element("span", "do"));
  return item;
}

function updateFinding(item, finding) {
  say(item.children[0], finding.name);
  say(item.children[1], finding.what + (finding.mark === "--" ? ` (${MARKS["--"]})` : ""));
  say(item.children[2], finding.to_do ?? "");
}

function drawDoctor(doctor) {
  const findings = doctor?.findings ?? [];
  const complaints = findings.filter((finding) => finding.mark === "!!");
  const others = findings.filter((finding) => finding.mark !== "!!");
  say(id("doctor-sum"), doctor ? `${doctor.summary} Asked ${age(doctor.age_s * 1000)} ago.` : "");
  const keyOf = (finding) => finding.mark + finding.name;
  list(id("complaints"), complaints, keyOf, makeFinding, updateFinding);
  list(id("others"), others, keyOf, makeFinding, updateFinding);
  id("fine").hidden = others.length === 0;
  say(id("fine").firstElementChild, `${count(others.length, "other check has", "other checks have")} found nothing wrong`);
}

// The page

function drawFrame({ server, counters, cost, slots }) {
  const name = server.name === "valkey" ? "Valkey" : "Redis";
  const role = server.role === "master" ? "" : ", a replica";
  say(id("server"), `${name} ${server.version} at ${server.address}, database ${server.database}${role}, up ${age(server.uptime_in_seconds * 1000)}`);
  say(id("locks-sum"), `${count(counters.lock_locks, "lock", "locks")}, ${count(counters.lock_waiters, "client waits", "clients wait")}`);
  const waiting = slots?.rows.reduce((sum, row) => sum + row.waiting, 0) ?? 0;
  say(id("slots-sum"), waiting ? count(waiting, "client waits", "clients wait") : "");
  say(id("limiters-sum"), `${number(counters.ratelimit_allowed)} allowed, ${number(counters.ratelimit_denied)} denied`);
  say(id("tags-sum"), `${count(counters.cache_tags, "tag", "tags")} in all. These are the ones of the most read keys.`);
  say(id("queues-sum"), `${count(counters.writebehind_dirty, "write is", "writes are")} on the way`);
  const pass = (Math.ceil(Math.max(1, server.keys) / cost.keys_a_step) * cost.every_ms) / 1000;
  const search = pass > 1.5
    ? ` Locks, limits and queues are looked for among ${number(cost.keys_a_step)} keys at a time; it takes ${duration(pass * 1000)} to see all.`
    : "";
  say(id("cost"), `This page only reads. The last look took ${count(cost.commands, "command", "commands")} and ${cost.ms.toFixed(1)} ms, every ${duration(cost.every_ms)}.${search}`);
}

function draw(state) {
  drawNow(state);
  list(id("readouts"), readouts(state), ({ name }) => name, makeReadout, updateReadout);
  drawFrame(state);
  if (!state.locks) return;
  drawStrips("locks", state.locks, updateLock);
  drawStrips("slots", state.slots, updateSlots);
  drawLimiters(state.limiters);
  drawTags(state.tags, state.unix_ms);
  drawHot(state.hot);
  drawQueues(state.queues);
  drawDoctor(state.doctor);
  for (const part of ["locks", "slots", "limiters", "tags", "hot", "queues", "doctor"]) {
    tell(`${part}-refused`, state.refused[part] ?? "");
  }
}

function show(live, status, notice) {
  document.body.dataset.live = live;
  say(id("status"), status);
  tell("notice", notice);
}

let last = null;

async function refresh() {
  let state;
  try {
    const query = searched ? `?${new URLSearchParams({ tag: searched })}` : "";
    const answer = await fetch(`state${query}`, { signal: AbortSignal.timeout(10_000) });
    state = await answer.json();
  } catch {
    show("no", "Away", "The program that serves this page does not answer. It is asked again each second.");
    return;
  }
  if (state.connected) {
    show("yes", "Live", "");
  } else {
    const since = state.away_since_ms ? ` since ${clock.format(state.away_since_ms)}` : "";
    show("no", "Away", `${state.address} cannot be read${since}: ${state.problem}. It is asked again each second.`);
  }
  if (state.server) {
    last = state;
    draw(state);
    drawFound(state.searched, state.unix_ms);
  }
}

const visible = () =>
  document.hidden ? new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true })) : null;
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

id("search").addEventListener("submit", (event) => {
  event.preventDefault();
  lookUp(id("tag").value);
});
id("tag").addEventListener("input", () => {
  searched = id("tag").value;
  if (!searched) id("found").hidden = true;
});
addEventListener("resize", () => last && drawNow(last));

for (;;) {
  await visible();
  const begun = performance.now();
  await refresh();
  await pause(Math.max(200, REFRESH_MS - (performance.now() - begun)));
}
