// What submit.mjs and worker.mjs share: names and small requests, straight from docs/wire.md.

import { connect, nanos } from "@nats-io/transport-node";

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** A task id as one subject token. */
export const escape = (id) => encodeURIComponent(id).replace(/\./g, "%2E").replace(/\*/g, "%2A");

export const resultSubject = (capability, task) => `cb.result.${capability}.${escape(task)}`;

/** Connect to NATS_URL, with NATS_USER and NATS_PASSWORD when set, and never give a lost connection up. */
export function open(name) {
  return connect({
    servers: process.env.NATS_URL ?? "127.0.0.1:4222",
    user: process.env.NATS_USER,
    pass: process.env.NATS_PASSWORD,
    name,
    maxReconnectAttempts: -1,
    reconnectTimeWait: 500,
    ignoreAuthErrorAbort: true,
  });
}

/** A refusal by the server: nothing was stored. */
export class Refused extends Error {
  constructor({ code, err_code, description }) {
    super(`${description} (${code}/${err_code})`);
    this.errCode = err_code;
    // The subject takes one message and has it. 10077 alone is not enough: a full stream answers it as well.
    this.exists = err_code === 10071 || (err_code === 10077 && /per subject/.test(description));
  }
}

/** Publish and wait for the answer that it is on disk: {stream, seq, duplicate?}. Throws Refused, or what request throws. */
export async function store(nc, subject, body, headers) {
  const answer = (await nc.request(subject, body, { timeout: 3000, headers })).json();
  if (answer.error) throw new Refused(answer.error);
  return answer;
}

/** The ledger's record of a task as text, or null while it is not finished. */
export async function readRecord(nc, capability, task) {
  const m = await nc.request(`$JS.API.DIRECT.GET.CB_LEDGER.${resultSubject(capability, task)}`, "", { timeout: 2000 });
  if (m.headers?.code === 404) return null;
  if (m.headers?.code) throw new Error(`direct get: ${m.headers.code} ${m.headers.description}`);
  return m.string();
}

/** The last message of every subject that matches, in one request: a list of [subject, parsed JSON], oldest first. */
export async function readMany(nc, subjects) {
  const found = [];
  // One message each, then an empty one with status 204; status 404 at once when nothing matches.
  const answers = await nc.requestMany("$JS.API.DIRECT.GET.CB_LEDGER", JSON.stringify({ multi_last: subjects }), {
    strategy: "sentinel",
    maxWait: 2000,
  });
  let ended = false;
  for await (const m of answers) {
    const code = m.headers?.code ?? 0;
    if (code === 204 || code === 404) {
      ended = true;
      break;
    }
    if (code) throw new Error(`direct get: ${code} ${m.headers.description}`);
    found.push([m.headers.get("Nats-Subject"), m.json()]);
  }
  if (!ended) throw new Error("direct get: no end marker came"); // half an answer must not pass for a whole one
  return found;
}

export { nanos };
