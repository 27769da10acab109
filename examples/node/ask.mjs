#!/usr/bin/env node
// Ask an actor and print its answer, or tell it something.
//
//   node ask.mjs [--tell | --stream] <type/key> <Message> '<json>' [key]
//
// The key names the question: asked again under it, the actor gives the stored answer. WAIT is the time-out in seconds.
// Exit: 0 answered, or stored; 1 the actor answered with an error; 2 usage; 3 no server; 4 refused;
//       5 no worker hosts the actor's type; 6 no answer in time.

import { createInbox, headers } from "@nats-io/transport-node";
import { Refused, escape, open, sleep, store } from "./wire.mjs";

const flag = process.argv[2]?.startsWith("--") ? process.argv[2].slice(2) : "ask";
const [address, message, text = "{}", key] = process.argv.slice(flag === "ask" ? 2 : 3);
const [, type, actor] = /^([a-z0-9_-]{1,64})\/(.+)$/s.exec(address ?? "") ?? [];
const waitMs = Number(process.env.WAIT ?? 30) * 1000;
if (!["ask", "tell", "stream"].includes(flag) || !type || !message) {
  console.error("usage: node ask.mjs [--tell | --stream] <type/key> <Message> '<json>' [key]");
  process.exit(2);
}

const nc = await open("ask").catch((error) => die(3, `no server: ${error.message} (NATS_URL, NATS_USER, NATS_PASSWORD)`));
const where = `${type}.${escape(actor)}`;
const h = headers();
h.set("Cb-Type", message);
if (key) h.set("Cb-Mail-Id", key);

if (flag === "tell") await tell();
else await ask();

/** Store a mail: the server's word means that it is on disk, whether the actor runs now or not. */
async function tell() {
  // The broker looks for repeats in the whole stream, so the message id holds the address too.
  if (key) h.set("Nats-Msg-Id", `${type}/${escape(actor)}/${key}`);
  try {
    const ack = await store(nc, `cb.mail.${where}`, text, h);
    console.log(ack.seq);
  } catch (error) {
    die(4, error instanceof Refused ? `refused: ${error.message}` : `not confirmed: ${error.message}`);
  }
  await nc.close();
}

async function ask() {
  // The deadline travels: what nobody waits for any more is not begun.
  h.set("Cb-Deadline", new Date(Date.now() + waitMs).toISOString());
  if (flag === "stream") h.set("Cb-Stream", "1");
  const inbox = createInbox();
  let next = 0;
  const answer = new Promise((resolve) => {
    nc.subscribe(inbox, {
      callback: (_error, m) => {
        const part = m.headers?.get("Cb-Part");
        if (!part) return resolve(m);
        // After a takeover the parts come again from the beginning; a number that is left out was lost on its way.
        if (Number(part) < next) return;
        if (Number(part) > next) console.error(`parts ${next} to ${Number(part) - 1} were lost on their way`);
        next = Number(part) + 1;
        console.log(m.string());
      },
    });
  });
  const say = () => nc.publish(`cb.ask.${where}`, text, { headers: h, reply: inbox });
  say();
  const giveUp = Date.now() + waitMs;
  let m;
  for (let silenceMs = 5000; !m; silenceMs *= 2) {
    const leftMs = giveUp - Date.now();
    if (leftMs <= 0) die(6, `${address} has not answered within ${waitMs / 1000} s; it may still handle the question`);
    m = await Promise.race([answer, sleep(Math.min(silenceMs, leftMs))]);
    // A host that took the question and died leaves silence. Only a named question may be asked again.
    if (!m && key) say();
  }
  if (m.headers?.code === 503) die(5, `no worker hosts ${type}: start one with 'callboard worker start FILE'`);
  const code = m.headers?.get("Cb-Error");
  if (code) {
    const { error } = m.json();
    die(1, `${error.type || code}: ${error.message}`);
  }
  console.log(m.string());
  await nc.close();
  process.exit(0); // the timer of the last wait would keep the process
}

function die(code, reason) {
  console.error(reason);
  process.exit(code);
}
