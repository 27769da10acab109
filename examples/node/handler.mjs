// The work itself: one function of the submitted JSON. What it returns is the result; what it throws is retried,
// unless the error says `retryable = false`. `signal` fires when the task is cancelled or its deadline passes.
//
// It may run twice (a worker can die after the work and before the record), so make a second run harmless, and keep
// the event loop free: work that computes for seconds belongs into a worker_threads thread.

export default async function countWords(argument, { task, attempt, signal }) {
  if (typeof argument?.text !== "string") {
    throw Object.assign(new TypeError("the argument takes a member \"text\""), { retryable: false });
  }
  return { task, attempt, words: argument.text.split(/\s+/).filter(Boolean).length, stopped: signal.aborted };
}
