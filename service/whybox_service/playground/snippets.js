// The request on the page as code that anybody can run: curl, and Python with the SDK.
// An API key is never written into it: both read WHYBOX_API_KEY.

/** A word of a POSIX shell. */
function shell(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** A file's name as curl takes it after "@": quoted where it holds what curl would read. */
function curlFile(name) {
  return /^[\w.-]+$/.test(name) ? name : `"${name.replace(/["\\]/g, "\\$&")}"`;
}

/** A literal of Python. */
function python(value) {
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "boolean") return value ? "True" : "False";
  if (value !== null && typeof value === "object") {
    return `{${Object.entries(value).map(([name, item]) => `${python(name)}: ${python(item)}`).join(", ")}}`;
  }
  return JSON.stringify(value);
}

/**
 * A request as curl.
 *
 * call: {origin, model, verb, fields, picture: {name, address}, keyed}; address is where a sample lies, or "".
 */
export function asCurl({ origin, model, verb, fields, picture, keyed }) {
  const lines = [`curl -sS --fail-with-body ${shell(`${origin}/v1/models/${encodeURIComponent(model)}:${verb}`)}`];
  if (keyed) lines.push('-H "Authorization: Bearer $WHYBOX_API_KEY"');
  lines.push(`-F ${shell(`image=@${curlFile(picture.name)}`)}`);
  lines.push(`--form-string ${shell(`request=${JSON.stringify(fields)}`)}`);
  const first = picture.address ? `curl -fsS -o ${shell(picture.name)} ${shell(picture.address)}\n` : "";
  return `${first}${lines.join(" \\\n  ")}\n`;
}

/** A request as Python; see asCurl. */
export function asPython({ origin, model, verb, fields, picture }) {
  const { select: { expected, ...select } = {}, nms, budget = {}, ...rest } = fields;
  const named = { ...rest, ...budget, ...select };
  const lines = Object.entries(named).map(([name, value]) => `${name}=${python(value)},`);
  if (expected) lines.push(`expected=(${python(expected.box)}, ${python(expected.label)}),`);
  const { kind, explain_suppressed: suppressed, ...numbers } = nms ?? {};
  const tuned = Object.keys(numbers).length > 0;
  if (suppressed) lines.push("explain_suppressed=True,");
  if (kind) {
    const settings = Object.entries(numbers).map(([name, value]) => `, ${name}=${python(value)}`);
    lines.push(tuned ? `nms=Nms(${python(kind)}${settings.join("")}),` : `nms=${python(kind)},`);
  }
  return [
    ...(picture.address ? ["from urllib.request import urlretrieve", ""] : []),
    `from whybox_client import Client${tuned ? ", Nms" : ""}`,
    "",
    ...(picture.address ? [`urlretrieve(${python(picture.address)}, ${python(picture.name)})`] : []),
    `with Client(${python(origin)}) as client:`,
    `    answer = client.${verb}(`,
    ...[python(model) + ",", python(picture.name) + ",", ...lines].map((line) => `        ${line}`),
    "    )",
    ...(expected
      ? ["print(answer.why_not)"]
      : [`for detection in answer${verb === "explain" ? ".detections" : ""}:`, "    print(detection)"]),
    ...(fields.evaluate ? ["for heat_map in answer.heat_maps:", "    print(heat_map.target, heat_map.faithfulness)"] : []),
    'answer.save("why.png")',
    "",
  ].join("\n");
}
