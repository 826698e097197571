// Talks to the service: JSON answers, problems as errors, and the API key, which lives in this module alone.

import { readEvents } from "./events.js";

let key = "";

// What a client may try again, as the contract's table of errors has it.
const RETRYABLE = new Set([408, 429, 503, 504]);
// A budget gets its seconds within this share of the time that the request has, and some for the rest of the work.
const SLACK = 1.5;
const PATIENCE_S = 30;

/** An RFC 9457 problem, or what happened where there was no answer at all. */
export class Problem extends Error {
  constructor(members, requestId = "") {
    super(members.detail || members.title);
    this.title = members.title;
    this.detail = members.detail ?? "";
    this.status = members.status ?? 0;
    this.field = members.field ?? "";
    this.expected = members.expected ?? "";
    this.got = members.got ?? "";
    this.requestId = members.request_id ?? requestId;
    this.retryAfter = members.retry_after_seconds ?? 0;
  }

  get retryable() {
    return this.status === 0 || RETRYABLE.has(this.status);
  }
}

/** Use an API key from now on; empty: none. */
export function useKey(value) {
  key = value;
}

/** Whether requests carry a key, so that code made from them has to. */
export function hasKey() {
  return key !== "";
}

/** All models that are served. */
export async function listModels() {
  const found = [];
  let token = "";
  do {
    const { body } = await request(`v1/models?${new URLSearchParams({ page_token: token })}`, {});
    found.push(...body.models);
    token = body.next_page_token;
  } while (token);
  return found;
}

/**
 * Detect or explain.
 *
 * Returns {body, requestId, seconds}: the answer, its id, and the time from asking to reading it.
 */
export async function ask(model, verb, picture, fields, signal) {
  return request(address(model, verb), { method: "POST", body: form(picture, fields), signal });
}

/**
 * Explain with a method that draws samples: `partial` is called with each answer that is not yet whole.
 *
 * Both it and the result are as those of ask().
 */
export async function grow(model, picture, fields, signal, partial) {
  const started = performance.now();
  const headers = { Accept: "text/event-stream" };
  const { seconds } = fields.budget ?? {};
  if (seconds) headers["X-Request-Timeout"] = String(Math.ceil(SLACK * seconds) + PATIENCE_S);
  const options = { method: "POST", body: form(picture, fields), signal, headers };
  const response = await send(address(model, "explain"), options);
  const requestId = response.headers.get("X-Request-Id") ?? "";
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) return read(response, started);
  const answer = (body) => ({ body, requestId, seconds: (performance.now() - started) / 1000 });
  for await (const { name, told } of readStream(response.body)) {
    if (name === "partial") partial(answer(told));
    if (name === "result") return answer(told);
    if (name === "error") throw new Problem(told, requestId);
  }
  throw new Problem({ title: "The answer broke off", detail: "The stream ended before its result." }, requestId);
}

function address(model, verb) {
  return `v1/models/${encodeURIComponent(model)}:${verb}`;
}

function form(picture, fields) {
  const made = new FormData();
  made.append("image", picture.blob, picture.name);
  made.append("request", new Blob([JSON.stringify(fields)], { type: "application/json" }));
  return made;
}

async function request(path, options) {
  const started = performance.now();
  return read(await send(path, options), started);
}

async function send(path, options) {
  const headers = { Accept: "application/json", ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  try {
    return await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    throw unreached(error);
  }
}

/** What a failure to send or to read means; our own errors, and that we gave up, are as they are. */
function unreached(error) {
  if (error instanceof Problem || error.name === "AbortError") return error;
  return new Problem({ title: "The service cannot be reached", detail: "It did not answer. Is it running?" });
}

/** Yield a stream's events as {name, told}; what is thrown where they are used passes as it is. */
async function* readStream(body) {
  try {
    for await (const { name, data } of readEvents(body)) yield { name, told: JSON.parse(data) };
  } catch (error) {
    throw unreached(error);
  }
}

async function read(response, started) {
  const requestId = response.headers.get("X-Request-Id") ?? "";
  let text;
  try {
    text = await response.text();
  } catch (error) {
    throw unreached(error);
  }
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    body = null;
  }
  if (response.ok && body) return { body, requestId, seconds: (performance.now() - started) / 1000 };
  throw new Problem(
    { status: response.status, title: `HTTP ${response.status}`, detail: "The answer is not one of this service’s.", ...body },
    requestId,
  );
}
