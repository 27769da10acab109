#!/usr/bin/env node
// An agent that no worker hosts: docs/wire.md, section 9, in one file. It registers, beats, answers, and leaves.
//
//   node agent.mjs <type/key> <capability>[,<capability>...] [handler.mjs]      WEIGHT=2 LABELS=zone=a,gpu=yes GRACE=25
//
// It shows in `callboard agents ls`, `callboard find <capability> --pick` chooses it when it is the least busy, and
// `callboard ask <type/key> Text '{"text":"one two"}'` asks it. Its mailbox is its memory: a question that it has taken
// is lost with the process, so askers wait with a time-out. What must survive belongs into a task (worker.mjs).
//
// Exit: 0 after SIGTERM or SIGINT, when all that ran has been answered; 2 usage; 3 no server; 4 the address is taken.

import { randomBytes } from "node:crypto";
import { hostname } from "node:os";
import { resolve as resolvePath } from "node:path";
import { pathToFileURL } from "node:url";
import { headers } from "@nats-io/transport-node";
import { escape, open, sleep } from "./wire.mjs";

const MAX_WAITING = 1000; // beyond it questions are refused at once
const ANSWERS_KEPT = 1000; // of questions with a key: asked again, they get the same answer
const ASK_EVERY = 10; // every so many beats one is a request, whose answer says whether we are still known

const [address, names, file = new URL("handler.mjs", import.meta.url).pathname] = process.argv.slice(2);
const [, type, key] = /^([a-z0-9_-]{1,64})\/(.+)$/s.exec(address ?? "") ?? [];
const capabilities = (names ?? "").split(",").filter(Boolean);
if (!type || !capabilities.length || capabilities.some((name) => !/^[a-z0-9_-]{1,64}$/.test(name))) {
  console.error("usage: node agent.mjs <type/key> <capability>[,<capability>...] [handler.mjs]");
  process.exit(2);
}
const handler = (await import(pathToFileURL(resolvePath(file)))).default;
const weight = Number(process.env.WEIGHT ?? 1);
const graceMs = Number(process.env.GRACE ?? 25) * 1000;
const labels = Object.fromEntries((process.env.LABELS ?? "").split(",").filter(Boolean).map((pair) => pair.split("=")));
const instance = `${hostname()}-${process.pid}-${randomBytes(3).toString("hex")}`;

let busy = 0;
let beats = 0;
let leaving = false;
const waiting = [];
const answered = new Map();

const nc = await open(`agent-${instance}`).catch((error) => die(3, `no server: ${error.message} (NATS_URL, NATS_USER, NATS_PASSWORD)`));

// Listen before registering: whoever finds us may ask at once.
const questions = nc.subscribe(`cb.ask.${type}.${escape(key)}`, { callback: (_error, m) => arrived(m) });
let everyMs = 1000;
await register();
console.error(`${address} can ${capabilities.join(", ")} (instance ${instance})`);
const beating = setInterval(beat, everyMs);
watch();
for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, leave);

// ---- the registry

/** Ask the registry. Errors it answers with are thrown with their code; without a leader the client's own error is. */
async function registry(subject, body) {
  const m = await nc.request(subject, JSON.stringify(body), { timeout: 2000 });
  const answer = m.json();
  if (m.headers?.get("Cb-Error")) throw Object.assign(new Error(answer.error.message), { code: answer.error.code });
  return answer;
}

/** Register, or renew: the same instance may do so at any time. While nobody leads the registry, try again. */
async function register() {
  for (;;) {
    try {
      const body = { type, key, capabilities, labels, weight, instance, host: hostname(), version: "1" };
      everyMs = (await registry("cb.registry.register", body)).every_s * 1000;
      return;
    } catch (error) {
      if (["duplicate_agent", "input", "invalid_name", "decode"].includes(error.code)) die(4, error.message);
      console.error(`not registered yet: ${error.message}`);
      await sleep(1000);
      if (leaving) return;
    }
  }
}

async function beat() {
  const body = { type, key, instance, busy, waiting: waiting.length, status: leaving ? "draining" : "ready" };
  beats += 1;
  if (beats % ASK_EVERY || leaving) return nc.publish("cb.registry.beat", JSON.stringify(body));
  try {
    await registry("cb.registry.beat", body);
  } catch (error) {
    // forgotten: the bucket was made anew, or we were offline for a day
    if (error.code === "not_found" && !leaving) await register();
  }
}

/** After a lost connection say at once that we are back. */
async function watch() {
  for await (const event of nc.status()) if (event.type === "reconnect" && !leaving) beat();
}

// ---- questions

function arrived(m) {
  const name = m.headers?.get("Cb-Mail-Id");
  if (name && answered.has(name)) return void answered.get(name).then((send) => send(m));
  if (waiting.length >= MAX_WAITING) return refuse(m, "mailbox_full", `${address} has ${MAX_WAITING} questions waiting`);
  const answer = new Promise((done) => waiting.push({ m, done }));
  if (name) {
    answered.set(name, answer);
    if (answered.size > ANSWERS_KEPT) answered.delete(answered.keys().next().value);
  }
  answer.then((send) => send(m));
  next();
}

function next() {
  while (busy < weight && waiting.length) {
    busy += 1;
    const { m, done } = waiting.shift();
    work(m).then((send) => {
      busy -= 1;
      done(send);
      next();
    });
  }
}

/** Run the handler; resolves to what sends the answer, so that a repeat can be sent the same. */
async function work(m) {
  const deadline = Date.parse(m.headers?.get("Cb-Deadline") ?? "");
  if (deadline <= Date.now()) return (to) => refuse(to, "deadline", "its time was over before it began");
  try {
    const argument = m.data.length ? m.json() : {};
    const signal = AbortSignal.timeout(Math.min(deadline - Date.now() || 2 ** 31 - 1, 2 ** 31 - 1));
    const value = await handler(argument, { task: m.headers?.get("Cb-Mail-Id") ?? "", attempt: 1, signal });
    const body = JSON.stringify(value ?? null);
    return (to) => to.respond(body);
  } catch (error) {
    return (to) => refuse(to, error instanceof SyntaxError ? "decode" : "handler", error.message, error.name);
  }
}

function refuse(m, code, message, type = "") {
  const h = headers();
  h.set("Cb-Error", code);
  m.respond(JSON.stringify({ error: { code, message, type } }), { headers: h });
}

// ---- the end

async function leave() {
  leaving = true;
  // who picks now picks another; who asks now gets "no responders"; what we have is answered
  await registry("cb.registry.deregister", { type, key, instance }).catch((error) => console.error(`not deregistered: ${error.message}`));
  await questions.drain();
  const giveUp = Date.now() + graceMs;
  while ((busy || waiting.length) && Date.now() < giveUp) await sleep(20);
  clearInterval(beating);
  await nc.drain();
  process.exit(0);
}

function die(code, reason) {
  console.error(reason);
  process.exit(code);
}
