// Talks to the service: JSON answers, problems as errors, and the API key, which lives in this module alone.

let key = "";

// What a client may try again, as the contract's table of errors has it.
const RETRYABLE = new Set([408, 429, 503, 504]);

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
  const form = new FormData();
  form.append("image", picture.blob, picture.name);
  form.append("request", new Blob([JSON.stringify(fields)], { type: "application/json" }));
  return request(`v1/models/${encodeURIComponent(model)}:${verb}`, { method: "POST", body: form, signal });
}

async function request(path, options) {
  const headers = { Accept: "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  const started = performance.now();
  let response;
  let text;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({ title: "The service cannot be reached", detail: "It did not answer. Is it running?" });
  }
  const requestId = response.headers.get("X-Request-Id") ?? "";
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
