#!/usr/bin/env node
// A complete Callboard worker: docs/wire.md, section 4, in one file.
//
//   node worker.mjs <capability> [handler.mjs]        CONCURRENCY=4 GRACE=25 NATS_URL=127.0.0.1:4222
//
// What it promises: a task is recorded once, a task whose worker died is taken over within about five seconds, and no
// task is dropped. What it leaves out: msgpack, and payloads or results over 256 KiB (claim checks in CB_BLOBS).

import { randomBytes } from "node:crypto";
import { hostname } from "node:os";
import { resolve as resolvePath } from "node:path";
import { pathToFileURL } from "node:url";
import { createInbox, headers } from "@nats-io/transport-node";
import { AckPolicy, DeliverPolicy, jetstreamManager } from "@nats-io/jetstream";
import { Refused, escape, nanos, open, readMany, readRecord, resultSubject, sleep, store } from "./wire.mjs";

const ACK_WAIT_MS = 4000; // the server gives a task to somebody else after this long without an extension
const EXTEND_MS = 1000;
const HOLDS_WAIT_MS = 750;
const QUARANTINE_MS = 4000; // after our own (re)connect other workers may not be back yet
const ATTEMPTS = 3;
const CRASH_LIMIT = 3;
const SCHEDULE_OVER_MS = 30_000; // a longer back-off is held by the server as a message of its own
const MAX_RESULT_BYTES = 256 * 1024;

const [capability, file = new URL("handler.mjs", import.meta.url).pathname] = process.argv.slice(2);
if (!/^[a-z0-9_-]{1,64}$/.test(capability ?? "")) {
  console.error("usage: node worker.mjs <capability> [handler.mjs]");
  process.exit(2);
}
const handler = (await import(pathToFileURL(resolvePath(file)))).default;
const slots = Number(process.env.CONCURRENCY ?? 4);
const graceMs = Number(process.env.GRACE ?? 25) * 1000;
const host = hostname().toLowerCase().replace(/[^a-z0-9_-]+/g, "-");
const worker = `${host}-${process.pid}-${randomBytes(3).toString("hex")}`;
const startedAt = new Date();

/** Everything in our hands, from delivery to answer. `stage` is screening, running or settling. */
const claims = new Set();
/** What ends a wait of the pull loop: a free slot, a reconnect, the drain. */
const wakers = new Set();
let draining = false;
let connected = true;
let connectedAt = performance.now();

const nc = await open(worker);
const jsm = await jetstreamManager(nc, { checkAPI: false });

// ---- consumers -------------------------------------------------------------------------------------------------------

const LANES = [
  ["CB_WORK", `${capability}-high`, `cb.task.${capability}.high`],
  ["CB_LATER", `${capability}-due`, `cb.due.${capability}`],
  ["CB_WORK", `${capability}-normal`, `cb.task.${capability}`],
  ["CB_WORK", `${capability}-low`, `cb.task.${capability}.low`],
];

async function ensureConsumers() {
  for (const [stream, name, filter_subject] of LANES) {
    try {
      // `add` sends "action":"create": it never changes a consumer that is there, "" would.
      await jsm.consumers.add(stream, {
        durable_name: name,
        name,
        filter_subject,
        ack_policy: AckPolicy.Explicit,
        deliver_policy: DeliverPolicy.All,
        ack_wait: nanos(ACK_WAIT_MS),
        max_deliver: -1,
        max_ack_pending: 4096,
      });
    } catch (error) {
      // 10148: it is there with other settings, which are somebody's choice.
      if (error.code !== 10148) throw new Error(`consumer ${name} on ${stream}: ${error.message}; are the streams there? (callboard provision)`);
    }
  }
}

// ---- pulling: only for free slots ------------------------------------------------------------------------------------

const free = () => slots - claims.size;

async function pullLoop() {
  while (!draining) {
    while (free() <= 0 && !draining) await new Promise((go) => wakers.add(go));
    // First whatever waits, in order of rank (a busy "high" lane starves the others: weigh them if that hurts you) …
    let got = 0;
    for (const lane of LANES) {
      if (draining || got > 0 || free() <= 0) break;
      got = await pull([lane], { batch: free(), no_wait: true }, 2000);
    }
    // … and when nothing does, a standing pull on every lane until something arrives.
    if (!got && !draining && free() > 0) {
      await pull(LANES, { batch: 1, expires: nanos(30_000), idle_heartbeat: nanos(5000) }, 11_000);
    }
  }
}

/** Ask the lanes; resolves to the number of deliveries when one lane is through, or after `silenceMs` without a word. */
function pull(lanes, request, silenceMs) {
  return new Promise((resolve) => {
    let got = 0;
    let timer;
    const subscriptions = [];
    const done = () => {
      if (!wakers.delete(done)) return;
      clearTimeout(timer);
      // `drain` takes our interest away, so the server drops the request at once, and still hands us what is under way.
      for (const s of subscriptions) s.drain().catch(() => {});
      resolve(got);
    };
    const listen = () => {
      clearTimeout(timer);
      timer = setTimeout(done, silenceMs);
    };
    wakers.add(done);
    listen();
    for (const [stream, name] of lanes) {
      const inbox = createInbox();
      subscriptions.push(
        nc.subscribe(inbox, {
          callback: (error, m) => {
            if (error) return done();
            listen();
            const code = m.headers?.code ?? 0;
            if (!code) {
              got += 1;
              arrived(m);
              if (got >= request.batch) done();
            } else if (code !== 100) {
              // 404 nothing there, 408 expired. 409 and 503: the consumer is gone, or the server is going.
              if (code === 404 || code === 408) return done();
              console.error(`pull ${name}: ${code} ${m.headers.description}`);
              ensureConsumers().catch((e) => console.error(e.message)).then(() => sleep(1000)).then(done);
            }
          },
        }),
      );
      nc.publish(`$JS.API.CONSUMER.MSG.NEXT.${stream}.${name}`, JSON.stringify(request), { reply: inbox });
    }
  });
}

function wake() {
  for (const go of [...wakers]) {
    go();
    wakers.delete(go);
  }
}

/** A delivery: the message, what its reply subject says of it, and the answers that one may publish there. */
function delivery(m) {
  let words = m.reply.split(".");
  if (words.length > 9) words = ["$JS", "ACK", ...words.slice(4)]; // newer form: $JS.ACK.<domain>.<account>.<stream>.…
  const answer = (text) => nc.publish(m.reply, text);
  return {
    subject: m.subject,
    headers: m.headers,
    data: m.data,
    string: () => m.string(),
    deliveryCount: Number(words[4]),
    seq: Number(words[5]),
    storedAt: new Date(Number(words[7].slice(0, -6))), // nanoseconds since 1970
    extend: () => answer("+WPI"),
    ack: () => answer("+ACK"),
    nak: (ms) => answer(`-NAK {"delay":${ms * 1e6}}`),
    term: (reason) => answer(`+TERM ${reason}`),
  };
}

function arrived(message) {
  const m = delivery(message);
  const get = (name) => m.headers?.get(name) || undefined;
  const own = m.subject.startsWith("cb.due.") ? `~d${m.seq}` : `~${m.seq}`;
  const id = get("Cb-Task-Id") ?? get("Nats-Msg-Id") ?? own;
  const claim = {
    m,
    id,
    // Only the first delivery of a task that the server named cannot have been run before.
    mayHaveRun: id !== own || m.deliveryCount > 1 || Number(get("Cb-Attempt") ?? 1) > 1,
    redelivered: m.deliveryCount > 1,
    attempt: Number(get("Cb-Attempt") ?? 1) || 1,
    lane: get("Cb-Lane") ?? m.subject.match(/^cb\.task\..*\.(high|low)$/)?.[1] ?? "normal",
    deadline: get("Cb-Deadline"),
    replyTo: get("Cb-Reply-To"),
    claimedAt: new Date(),
    extendedAt: performance.now(),
    stage: "screening",
    crashes: 0,
    n: 1, // number of its next attempt record
    ran: false,
    abort: new AbortController(),
  };
  const tooMany = free() <= 0;
  claims.add(claim);
  (draining || tooMany ? handBack(claim) : work(claim))
    // An error here is ours, not the handler's: let go without an answer, the server hands the task out again.
    .catch((error) => console.error(`task ${id}: ${error.stack}`))
    .finally(() => {
      claims.delete(claim);
      wake();
    });
}

// ---- keeping it ours ------------------------------------------------------------------------------------------------

setInterval(() => {
  if (!connected) return; // what is written now would arrive after the reconnect, when it may be somebody else's
  for (const claim of claims) {
    claim.m.extend();
    claim.extendedAt = performance.now();
  }
}, EXTEND_MS);

/** Whether the server may have given it to somebody else: then any answer but +ACK would disturb that run. */
const lapsed = (claim) => !connected || performance.now() - claim.extendedAt > ACK_WAIT_MS;

nc.subscribe("cb.ctl.holds", {
  callback: (_error, m) => {
    if (!m.reply) return;
    const { tasks = [], seqs = [] } = m.json();
    // Of two workers that are both still asking about one task, the one with the earlier message holds it.
    const holds = (task, seq) => [...claims].some((c) => c.id === task && (c.stage !== "screening" || c.m.seq < seq));
    m.respond(JSON.stringify({ worker, held: tasks.filter((task, i) => holds(task, seqs[i] ?? 0)) }));
  },
});

/** When each other worker's heartbeat was last heard: whose answer is worth waiting for. */
const peers = new Map();
nc.subscribe("cb.beat.>", {
  callback: (_error, m) => {
    const { worker: peer, status } = m.json();
    if (status === "stopped") peers.delete(peer);
    else if (peer !== worker) peers.set(peer, performance.now());
  },
});

/** Ask every worker, ourselves too, whether it is running this task. */
function isHeld(claim) {
  if ([...claims].some((c) => c !== claim && c.id === claim.id && (c.stage !== "screening" || c.m.seq < claim.m.seq))) return true;
  const awaited = new Set([...peers].filter(([, at]) => performance.now() - at < 3000).map(([peer]) => peer));
  // Behind a redelivery there may be a worker whose beats we have not heard yet: wait the whole time.
  const early = () => awaited.size === 0 && !claim.redelivered;
  if (early()) return false;
  return new Promise((resolve) => {
    const inbox = createInbox();
    const end = (held) => {
      clearTimeout(timer);
      sub.unsubscribe();
      resolve(held);
    };
    const timer = setTimeout(() => end(false), HOLDS_WAIT_MS);
    const sub = nc.subscribe(inbox, {
      callback: (error, m) => {
        if (error || m.headers?.code) return;
        const answer = m.json();
        awaited.delete(answer.worker);
        if (answer.worker !== worker && answer.held.includes(claim.id)) end(true);
        else if (early()) end(false);
      },
    });
    nc.publish("cb.ctl.holds", JSON.stringify({ tasks: [claim.id], seqs: [claim.m.seq] }), { reply: inbox });
  });
}

// ---- one task -------------------------------------------------------------------------------------------------------

async function work(claim) {
  if (claim.mayHaveRun && !(await mayRun(claim))) return;
  if (draining) return handBack(claim);
  const type = claim.m.headers?.get("Content-Type") || "application/json";
  if (type !== "application/json" || claim.m.headers?.has("Cb-Claim-Check")) {
    return bury(claim, { code: "decode", message: `this worker reads inline JSON only, not ${type} or a claim check`, retryable: false });
  }
  const body = claim.m.string();
  let argument;
  try {
    argument = body === "" ? undefined : JSON.parse(body);
    claim.json = body;
  } catch (error) {
    return bury(claim, { code: "decode", message: error.message, retryable: false });
  }
  const leftMs = claim.deadline ? Date.parse(claim.deadline) - Date.now() : Infinity;
  if (Number.isNaN(leftMs)) return bury(claim, { code: "deadline", message: `not a time: ${claim.deadline}`, retryable: false });
  if (leftMs <= 0) return expire(claim);

  claim.stage = "running";
  claim.ran = true;
  const { signal } = claim.abort;
  const stopped = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  stopped.catch(() => {});
  const timer = leftMs < 2 ** 31 ? setTimeout(() => claim.abort.abort(new Stopped("expired")), leftMs) : undefined;
  let result;
  try {
    result = await Promise.race([handler(argument, { task: claim.id, attempt: claim.attempt, signal }), stopped]);
  } catch (error) {
    claim.stage = "settling";
    if (!(error instanceof Stopped)) return failed(claim, error);
    if (error.why === "drain") return handBack(claim);
    if (error.why === "expired") return expire(claim);
    return finish(claim, "cancelled", { error: { code: "task_cancelled", message: error.message, retryable: false } });
  } finally {
    clearTimeout(timer);
  }
  claim.stage = "settling";
  const text = JSON.stringify(result ?? null);
  if (Buffer.byteLength(text) > MAX_RESULT_BYTES) {
    return bury(claim, { code: "payload_too_large", message: "the result is over 256 KiB", retryable: false });
  }
  return finish(claim, "completed", { result: new Raw(text) });
}

class Stopped extends Error {
  constructor(why, message = why) {
    super(message);
    this.why = why;
  }
}

/** Screen a task that may have been run before. False: it is dealt with, do not run it. */
async function mayRun(claim) {
  const read = () =>
    patiently(() => readMany(nc, [resultSubject(capability, claim.id), `cb.attempt.${capability}.${escape(claim.id)}.*`]));
  const isRecorded = () => found.some(([subject]) => subject.startsWith("cb.result."));
  const newest = () => found.filter(([subject]) => subject.startsWith("cb.attempt.")).map(([, r]) => r).sort((a, b) => b.n - a.n)[0];
  let found = claim.redelivered ? await read() : [];
  // Most redeliveries are retries: the last run wrote down how it ended, so nobody can be running them.
  if (!isRecorded() && (newest()?.kind ?? "started") === "started") {
    while (claim.redelivered && (performance.now() < connectedAt + QUARANTINE_MS || !connected)) await sleep(50);
    // First who runs it, then what is recorded: a run that ends between the two questions is seen by the second.
    const held = await isHeld(claim);
    found = await read();
    if (held && !isRecorded()) return false; // without any answer: the holder's own extensions keep it
  }
  if (isRecorded()) {
    claim.m.ack();
    return false;
  }
  const history = found.map(([, record]) => record).sort((a, b) => a.n - b.n);
  const last = newest();
  const failures = history.filter((r) => r.kind === "failed").length;
  claim.n = (last?.n ?? 0) + 1;
  if (last?.kind === "failed" && claim.attempt <= failures) {
    const waitMs = last.retry_at ? Date.parse(last.retry_at) - Date.now() : 0;
    if (last.scheduled) {
      // The next attempt is a message of its own; a worker that died may not have got so far as to store it.
      await schedule(claim, Math.max(0, waitMs), failures + 1);
      claim.m.ack();
      return false;
    }
    if (waitMs > 50) {
      nak(claim, waitMs);
      return false;
    }
  }
  claim.attempt = Math.max(claim.attempt, failures + 1);
  claim.crashes = countCrashes(history, claim.redelivered);
  if (claim.crashes >= CRASH_LIMIT) {
    await bury(claim, { code: "crash_limit", message: `its worker died ${claim.crashes} times while it ran`, retryable: false });
    return false;
  }
  if (claim.redelivered || history.length > 0) await note(claim, { kind: "started" });
  return !lapsed(claim);
}

/** Runs that began and never ended: every run but a task's first writes "started", every unfinished end another record. */
function countCrashes(history, redelivered) {
  let crashes = 0;
  let open = redelivered || (history.length > 0 && history[0].kind !== "started");
  for (const { kind } of history) {
    if (kind === "started" && open) crashes += 1;
    open = kind === "started";
  }
  return crashes + (open && redelivered ? 1 : 0);
}

// ---- how it ends: record, answer to the server, notice, in this order -------------------------------------------------

async function failed(claim, error) {
  const failure = {
    code: "handler",
    message: String(error?.message ?? error).slice(0, 4000),
    retryable: error?.retryable !== false,
    type: error?.name,
    trace: error?.stack?.slice(-8000),
  };
  if (!failure.retryable || claim.attempt >= ATTEMPTS) return bury(claim, failure);
  if (lapsed(claim)) return;
  const delayMs = error?.after_ms ?? 2000 * 2 ** (claim.attempt - 1) * (0.9 + 0.2 * Math.random());
  const scheduled = delayMs > SCHEDULE_OVER_MS || undefined;
  await note(claim, { kind: "failed", error: failure, retry_at: new Date(Date.now() + delayMs), scheduled });
  if (!scheduled) return nak(claim, delayMs);
  await schedule(claim, delayMs, claim.attempt + 1);
  claim.m.ack();
}

/** For good: dead letter, record, +TERM. */
async function bury(claim, failure) {
  if (lapsed(claim)) return;
  const found = await patiently(() => readMany(nc, [`cb.attempt.${capability}.${escape(claim.id)}.*`]));
  const letter = json({
    v: 1, task: claim.id, capability, cause: failure, history: found.map(([, record]) => record),
    submitted: submitted(claim), attempts: claim.ran ? claim.attempt : claim.attempt - 1, crashes: claim.crashes,
    worker, at: new Date(),
  });
  await patiently(() => store(nc, `cb.dead.task.${capability}.${escape(claim.id)}`, letter));
  await finish(claim, "failed", { error: failure }, `${failure.code}: ${failure.message}`.replace(/\s+/g, " ").slice(0, 200));
}

function expire(claim) {
  return finish(claim, "expired", { error: { code: "deadline", message: `the deadline ${claim.deadline} passed`, retryable: false } });
}

async function finish(claim, status, outcome, termReason) {
  let record = json({
    v: 1, task: claim.id, capability, status, ...outcome, submitted: submitted(claim),
    attempts: claim.ran ? claim.attempt : claim.attempt - 1, crashes: claim.crashes || undefined,
    worker, claimed_at: claim.claimedAt, finished_at: new Date(),
  });
  const ours = await storeOnce(resultSubject(capability, claim.id), record);
  claims.delete(claim);
  if (ours && termReason && !lapsed(claim)) claim.m.term(termReason);
  else claim.m.ack();
  if (!claim.replyTo) return;
  if (!ours) record = (await patiently(() => readRecord(nc, capability, claim.id))) ?? record; // what stands is the truth
  nc.publish(claim.replyTo, record);
}

/** Give back what we did not finish (drain, no free slot), with a record, so that it does not count as a crash. */
async function handBack(claim) {
  if (claim.redelivered && claim.n === 1) {
    // It was not screened, so the number of its next record is not known.
    const found = await patiently(() => readMany(nc, [`cb.attempt.${capability}.${escape(claim.id)}.*`]));
    claim.n = 1 + Math.max(0, ...found.map(([, record]) => record.n));
  }
  await note(claim, { kind: "returned" });
  nak(claim, 20);
}

function nak(claim, delayMs) {
  claims.delete(claim); // first: a +WPI after the nak would replace the delay by a whole ack_wait
  if (!lapsed(claim)) claim.m.nak(Math.max(1, Math.ceil(delayMs)));
}

async function note(claim, members) {
  for (;;) {
    const n = claim.n++;
    const record = json({ v: 1, task: claim.id, capability, n, attempt: claim.attempt, worker, at: new Date(), ...members });
    // Taken: an older worker's note. The next number is free, or tells.
    if (await storeOnce(`cb.attempt.${capability}.${escape(claim.id)}.${n}`, record)) return;
  }
}

/** Have the server publish the next attempt in `delayMs`. */
async function schedule(claim, delayMs, attempt) {
  const h = headers();
  for (const name of claim.m.headers?.keys() ?? []) {
    if (!name.toLowerCase().startsWith("nats-")) h.set(name, claim.m.headers.get(name));
  }
  h.set("Cb-Task-Id", claim.id);
  h.set("Cb-Attempt", String(attempt));
  h.set("Cb-Lane", claim.lane); // for the record; the firing comes on a lane of its own
  h.set("Nats-Schedule", `@at ${new Date(Date.now() + delayMs).toISOString()}`);
  h.set("Nats-Schedule-Target", `cb.due.${capability}`);
  await patiently(() => store(nc, `cb.later.${escape(claim.id)}`, claim.m.data, h));
}

/** Store on a write-once subject. False: something else stands there. */
async function storeOnce(subject, body) {
  return patiently(async () => {
    try {
      await store(nc, subject, body);
      return true;
    } catch (error) {
      if (!(error instanceof Refused && error.exists)) throw error;
      // Ours, when only the answer to an earlier try got lost.
      const m = await nc.request(`$JS.API.DIRECT.GET.CB_LEDGER.${subject}`, "", { timeout: 2000 });
      return !m.headers?.code && m.string() === body;
    }
  });
}

/** Repeat until it works, with the task kept ours meanwhile: a full store or a lost server is not the task's fault. */
async function patiently(call) {
  for (let ms = 50; ; ms = Math.min(2000, ms * 2)) {
    try {
      return await call();
    } catch (error) {
      if (nc.isClosed()) throw error;
      console.error(`again in ${ms} ms: ${error.message}`);
      await sleep(ms);
    }
  }
}

// ---- records as JSON -----------------------------------------------------------------------------------------------

/** JSON text that goes into a record as it is: parsing and printing it would spoil numbers beyond 2^53. */
class Raw {
  constructor(text) {
    this.text = text;
  }
}

function json(members) {
  const given = Object.entries(members).filter(([, value]) => value !== undefined);
  return `{${given.map(([k, v]) => `${JSON.stringify(k)}:${v instanceof Raw ? v.text : JSON.stringify(v)}`).join(",")}}`;
}

function submitted(claim) {
  const { m } = claim;
  const kept = {};
  for (const name of m.headers?.keys() ?? []) if (name !== "Cb-Claim-Check") kept[name] = m.headers.get(name);
  const check = m.headers?.get("Cb-Claim-Check") || undefined;
  return new Raw(
    json({
      seq: m.seq,
      at: m.storedAt,
      lane: claim.lane,
      payload: claim.json ? new Raw(claim.json) : undefined,
      payload_b64: claim.json === undefined && !check ? Buffer.from(m.data).toString("base64") : undefined,
      claim_check: check,
      headers: Object.keys(kept).length ? kept : undefined,
    }),
  );
}

// ---- orders, heartbeat, life ----------------------------------------------------------------------------------------

nc.subscribe("cb.ctl.cancel", {
  callback: (_error, m) => {
    const { task, reason = "cancelled by request" } = m.json();
    const running = [...claims].find((c) => c.id === task && c.stage === "running");
    if (!running) return; // not ours: silence, the worker that runs it answers
    running.abort.abort(new Stopped("cancelled", reason));
    if (m.reply) m.respond(JSON.stringify({ worker, cancelled: true }));
  },
});

function beat(status) {
  const busy = [...claims].filter((c) => c.stage === "running").length;
  const load = { name: capability, pool: "default", slots, busy, unsettled: claims.size - busy, backlog: 0 };
  const at = new Date();
  nc.publish(`cb.beat.${worker}`, JSON.stringify({
    v: 1, worker, host, pid: process.pid, version: "node-example", status, started_at: startedAt, at, fetched_at: at,
    labels: {}, capabilities: [load],
  }));
}

(async () => {
  for await (const s of nc.status()) {
    if (s.type === "disconnect") connected = false;
    if (s.type === "reconnect") {
      connected = true;
      connectedAt = performance.now();
      wake(); // pulls do not survive the server: end them, the loop asks again
    }
  }
})();

async function drain() {
  if (draining) process.exit(1); // asked twice
  draining = true;
  wake();
  const giveUp = performance.now() + graceMs;
  while (claims.size > 0 && performance.now() < giveUp) await sleep(50);
  for (const claim of claims) claim.abort.abort(new Stopped("drain"));
  const last = performance.now() + 5000;
  while (claims.size > 0 && performance.now() < last) await sleep(50);
  beat("stopped");
  await nc.flush().catch(() => {});
  await nc.close();
  process.exit(0);
}
process.on("SIGTERM", drain);
process.on("SIGINT", drain);
nc.closed().then((error) => {
  if (!draining) console.error(`connection closed: ${error?.message}`);
  process.exit(draining ? 0 : 1);
});

try {
  await ensureConsumers();
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
beat("ready");
setInterval(() => connected && beat(draining ? "draining" : "ready"), 1000);
console.error(`worker ${worker} serves ${capability} in ${slots} slots`);
await pullLoop();
