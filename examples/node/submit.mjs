#!/usr/bin/env node
// Submit one task under an idempotency key, wait for its result, print it.
//
//   node submit.mjs <capability> '<json>' [id]
//
// Exit: 0 completed; 1 failed, cancelled or expired; 2 usage; 3 not submitted; 4 no result in time (it still runs).

import { randomUUID } from "node:crypto";
import { createInbox, headers } from "@nats-io/transport-node";
import { Refused, open, readRecord, sleep, store } from "./wire.mjs";

const [capability, text, id = `${capability}/${randomUUID()}`] = process.argv.slice(2);
const waitMs = Number(process.env.WAIT ?? 60) * 1000;
if (!/^[a-z0-9_-]{1,64}$/.test(capability ?? "") || !isJson(text) || !/^[^~\s][^\r\n]*$/.test(id)) {
  console.error("usage: node submit.mjs <capability> '<json>' [id]   (id: one line, not beginning with '~')");
  process.exit(2);
}

const nc = await open("submit").catch((error) => die(3, `no server: ${error.message} (NATS_URL, NATS_USER, NATS_PASSWORD)`));

// Listen before submitting: a quick worker answers before the server has confirmed the task to us.
const inbox = createInbox();
const notice = new Promise((resolve) => {
  nc.subscribe(inbox, { max: 1, callback: (_error, m) => resolve(m.string()) });
});

const ack = await submit().catch((error) => die(3, error.message));
console.error(`task ${id}${ack.duplicate ? " (submitted before)" : ""}`);

const record = JSON.parse(await result());
await nc.close();
if (record.status !== "completed") die(1, `${record.status}: ${record.error?.code}: ${record.error?.message}`);
console.log(JSON.stringify(record.result_blob ? { result_blob: record.result_blob } : record.result));
process.exit(0); // the timer of the last look into the ledger would keep the process for up to two seconds

/** Publish until the server has confirmed it. Without an answer the outcome is unknown: again, under the same id. */
async function submit() {
  const h = headers();
  h.set("Nats-Msg-Id", id);
  h.set("Cb-Reply-To", inbox);
  const giveUp = Date.now() + 30_000;
  for (;;) {
    try {
      return await store(nc, `cb.task.${capability}`, text, h);
    } catch (error) {
      const full = error instanceof Refused && (error.errCode === 10077 || error.errCode === 10023);
      if (error instanceof Refused && !full) throw error;
      if (Date.now() > giveUp) throw new Error(full ? `the queue is full: ${error.message}` : `not confirmed: ${error.message}`);
      await sleep(500);
    }
  }
}

/** The record: from the notice, or from the ledger when the notice was lost or went to an earlier submitter. */
async function result() {
  const giveUp = Date.now() + waitMs;
  for (;;) {
    const told = await Promise.race([notice, readRecord(nc, capability, id).catch(() => null)]);
    if (told) return told;
    if (Date.now() > giveUp) die(4, `no result after ${waitMs / 1000} s; the task is stored and will run. Ask again with the same id`);
    const heard = await Promise.race([notice, sleep(2000)]);
    if (heard) return heard;
  }
}

function isJson(value) {
  try {
    JSON.parse(value);
    return true;
  } catch {
    return false;
  }
}

function die(code, message) {
  console.error(message);
  process.exit(code);
}
