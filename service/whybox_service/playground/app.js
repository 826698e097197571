// The page: what is chosen, what is asked of the service because of it, and what is shown of the answer.

import * as api from "./api.js";
import { hideProblem, showAnswer, showMeasures, showProblem } from "./answer.js";
import { buildForm, element, fillSelect, formatted, isSide, targetName } from "./form.js";
import { drawRamp, range } from "./maps.js";
import { Missing } from "./missing.js";
import { whyNot, whySuppressed } from "./reasons.js";
import { SAMPLES } from "./samples.js";
import { asCurl, asPython } from "./snippets.js";
import { Stage } from "./stage.js";

const byId = (id) => document.getElementById(id);

const ORIGIN = new URL(".", document.baseURI).href.replace(/\/$/, "");
// How long a slider rests before its value is asked for.
const REST_MS = 250;
// What bounds a method that draws samples, as a method describes its parameters; an empty one does not.
const BUDGET = [
  { name: "seconds", type: "number", default_value: 10, minimum: 0.1, optional: true, description: "to draw samples for" },
  { name: "samples", type: "integer", minimum: 1, optional: true, description: "to draw at most" },
  { name: "seed", type: "integer", default_value: 0, minimum: 0, description: "of what is drawn" },
];

// Why a request was given up: its answer so far is what is wanted.
const STOPPED = new DOMException("stopped", "AbortError");

const state = {
  models: [],
  model: null,
  picture: null, // {blob, name, title, url, address}
  detections: [],
  chosen: null, // index of the detection that is explained
  expected: null, // {box, label} of the object whose absence is explained
  candidate: null, // the detection nearest to it
  evaluate: false,
  target: "class", // class, x1 …: what the radio buttons say
  compare: false,
  map: null, // the one map on show
  asked: null, // {verb, fields}: what the code is made from
};

let readNms = () => ({});
let readParams = () => ({});
let readBudget = () => ({});
let inFlight = null;
let resting = 0;

const stage = new Stage((index) => explain(index));
const missing = new Missing(stage, (expected) => explainMissing(expected));

// --- asking ---------------------------------------------------------------------------------------------------------

/**
 * Ask the service; null where it was refused, or where something else has been asked meanwhile.
 *
 * With `partial` the answer grows: it is called with each body that is not yet whole. Who stops it gets the last one.
 */
async function ask(verb, fields, again, partial) {
  clearTimeout(resting);
  inFlight?.abort();
  const mine = (inFlight = new AbortController());
  state.asked = { verb, fields };
  showCode();
  busy(true);
  const bounds = { samples: fields.params?.samples, ...fields.budget };
  showGrowth(partial ? { body: { heat_maps: [] }, seconds: 0 } : null, bounds);
  let latest = null;
  const grown = (answer) => {
    if (inFlight !== mine) return;
    latest = answer;
    showGrowth(answer, bounds);
    partial(answer.body);
  };
  try {
    const answer = await (partial
      ? api.grow(state.model.name, state.picture, fields, mine.signal, grown)
      : api.ask(state.model.name, verb, state.picture, fields, mine.signal)
    ).catch((error) => {
      if (mine.signal.reason === STOPPED && latest) return latest;
      throw error;
    });
    if (inFlight !== mine) return null;
    if (partial) showGrowth(answer);
    hideProblem();
    showAnswer(answer);
    return answer;
  } catch (error) {
    if (inFlight === mine) showGrowth(null);
    if (error === STOPPED) say("Stopped before the first samples were there.");
    else if (inFlight === mine && error.name !== "AbortError") fail(error, again);
    return null;
  } finally {
    if (inFlight === mine) {
      inFlight = null;
      busy(false);
    }
  }
}

/** Tell of a problem; a missing key is asked for first. */
function fail(error, again) {
  if (!(error instanceof api.Problem)) throw error;
  say(`${error.title}.`);
  showProblem(error, again);
  if (error.status === 401) askForKey(again, api.hasKey() ? error.detail : "");
}

/** Show how far an answer is; with its bounds it is still growing. null: no samples are drawn. */
function showGrowth(answer, bounds) {
  const maps = answer ? [...answer.body.heat_maps, ...(answer.body.why_not?.heat_maps ?? [])] : [];
  const samples = Math.min(...maps.map((map) => map.samples ?? 0));
  byId("growth").hidden = !answer || !(bounds || (maps.length && samples));
  byId("growth-bar").hidden = byId("stop").hidden = !bounds;
  if (byId("growth").hidden) return;
  const errors = maps.map((map) => map.standard_error).filter((error) => error !== undefined);
  const error = errors.length ? `, standard error ${formatted(Math.max(...errors))}` : "";
  byId("growth-text").textContent = maps.length ? `${samples} samples${error}` : "Drawing samples";
  const shares = bounds ? [samples / bounds.samples, answer.seconds / bounds.seconds].filter(Number.isFinite) : [];
  const bar = byId("growth-bar");
  if (shares.length && maps.length) bar.value = Math.min(1, Math.max(...shares));
  else bar.removeAttribute("value");
}

function selection() {
  return { score_threshold: byId("threshold").valueAsNumber };
}

/** The request's nms, or nothing where it is the model's own. */
function suppression() {
  const kind = byId("nms").value;
  const numbers = readNms();
  const own = state.model.nms.find((entry) => entry.kind === kind) ?? {};
  const changed = Object.entries(numbers).filter(([name, value]) => value !== own[name]);
  if (kind === state.model.default_nms && !changed.length) return {};
  return { nms: { kind, ...Object.fromEntries(changed) } };
}

/** How to explain: what both a detection and an object that is missing are asked for. */
function manner(method) {
  const fields = { ...suppression(), method: method.name };
  const layer = [byId("layer").value, byId("with-field").hidden ? "" : byId("with").value].filter(Boolean).join("+");
  if (layer) fields.layer = layer;
  if (method.params.length) fields.params = readParams();
  if (method.sampling) {
    const { seed, ...budget } = readBudget();
    fields.budget = budget;
    if (seed) fields.seed = seed;
  }
  return fields;
}

/** Find what is in the picture, and explain again what was explained. */
async function detect() {
  if (!state.picture || !state.model) return;
  const before = state.chosen === null ? null : state.detections.find(({ index }) => index === state.chosen);
  const fields = { select: selection(), ...suppression() };
  if (byId("suppressed").checked) fields.nms = { ...fields.nms, explain_suppressed: true };
  const answer = await ask("detect", fields, detect);
  if (!answer) return;
  const { detections, image, suppressed } = answer.body;
  stage.setSize(image);
  state.detections = detections;
  stage.setDetections(detections, spoken);
  stage.setSuppressed(suppressed.map((each) => ({ box: each.box, reason: whySuppressed(each, detections) })));
  checkFrame(image);
  const same = before && detections.find(({ box, label }) => label === before.label && String(box) === String(before.box));
  if (same) {
    explain(same.index);
    return;
  }
  leave();
  const count = detections.length === 1 ? "1 object" : `${detections.length || "No"} objects`;
  const hint = detections.length ? " Choose one to see why." : " Lower the score to see more.";
  say(`${count} from a score of ${byId("threshold").value}.${hint}`);
}

/** Show why a detection is what it is. */
async function explain(index) {
  const detection = state.detections.find((each) => each.index === index);
  const method = currentMethod();
  if (!detection) return;
  if (!method) {
    say("This model has no method that explains.");
    return;
  }
  if (state.expected) leave();
  if (state.chosen !== index) fillOther(detection);
  state.chosen = index;
  stage.mark(index);
  const fields = {
    select: { ...selection(), indices: [index] },
    targets: state.compare ? method.targets : [target()],
    ...manner(method),
  };
  if (state.evaluate) fields.evaluate = true; // of what is missing no map can be measured
  const show = ({ heat_maps: maps }) => {
    if (maps.length) showMaps(maps, detection);
  };
  const answer = await ask("explain", fields, () => explain(index), method.sampling && show);
  if (!answer) return;
  show(answer.body);
  if (!answer.body.heat_maps.length) return;
  say(state.compare ? `All targets of ${spoken(detection)}.` : `${targetName(state.map.target)}: ${spoken(detection)}.`);
}

/** Show the maps of a detection: one over the picture, or all side by side. */
function showMaps(maps, detection) {
  if (state.compare) {
    state.map = null;
    stage.showSheet(maps, detection.box, byId("opacity").valueAsNumber, state.target, (chosen) => {
      setTarget(chosen);
      setCompare(false);
    });
  } else {
    [state.map] = maps;
    stage.showMap(state.map, `Heat map of ${state.map.target} for ${spoken(detection)}`);
    stage.setOpacity(byId("opacity").valueAsNumber);
  }
  showView();
}

/** Show why an object that was expected is not there, and what its best candidate looked at. */
async function explainMissing(expected) {
  const method = currentMethod();
  if (!method || !state.picture) return;
  leave();
  state.expected = expected;
  const fields = { select: { ...selection(), expected }, targets: [target()], ...manner(method) };
  const show = ({ why_not: told, detections }) => {
    if (!told) return;
    const sentence = whyNot(told, expected.label, detections);
    const [map] = told.heat_maps;
    state.map = map ?? null;
    state.candidate = told.candidate ?? null;
    stage.showMissing(state.candidate, map, `Heat map of ${map?.target} for the best candidate`);
    stage.setOpacity(byId("opacity").valueAsNumber);
    missing.tell(sentence);
    showView();
    return sentence;
  };
  const answer = await ask("explain", fields, () => explainMissing(expected), method.sampling && show);
  if (answer) say(show(answer.body) ?? "The service does not say.");
}

/** Go back from a heat map to the boxes. */
function leave() {
  const focused = document.activeElement?.closest("#view") ? state.chosen : null;
  state.chosen = null;
  state.expected = null;
  state.candidate = null;
  state.map = null;
  forgetOther();
  missing.tell("");
  stage.clear();
  showView();
  if (focused !== null) stage.focus(focused);
}

/** Explain anew, where something is explained, once a control has come to rest. */
function refresh(action) {
  clearTimeout(resting);
  resting = setTimeout(action, REST_MS);
}

function again() {
  if (state.expected) explainMissing(state.expected);
  else if (state.chosen !== null) explain(state.chosen);
}

// --- showing --------------------------------------------------------------------------------------------------------

function say(text) {
  byId("status").textContent = text;
}

function busy(on) {
  byId("progress").hidden = !on;
  byId("stage").setAttribute("aria-busy", String(on));
}

function spoken(detection) {
  return `${detection.label}, score ${detection.score.toFixed(2)}`;
}

function showView() {
  byId("view").hidden = state.chosen === null && !state.expected;
  byId("compare").hidden = state.chosen === null;
  byId("evaluate").hidden = state.chosen === null || !state.model?.measures.length;
  byId("legend").hidden = state.map === null;
  byId("download").hidden = state.map === null;
  showMeasures(state.map?.faithfulness ?? {}, state.model?.measures ?? []);
  if (!state.map) return;
  drawRamp(byId("ramp"), state.map.signed);
  const [low, high] = range(state.map);
  byId("legend-low").textContent = formatted(low);
  byId("legend-high").textContent = formatted(high);
}

function checkFrame({ width, height }) {
  const seen = state.picture.size;
  if (!seen) {
    const text = "This browser cannot show pictures of this kind; the service can read it, so its boxes are drawn on grey.";
    showProblem({ title: "No picture", detail: text });
  } else if (seen.width !== width || seen.height !== height) {
    const sizes = { expected: `${width} × ${height}, as the service reads it`, got: `${seen.width} × ${seen.height}` };
    showProblem({ title: "The browser turns this picture in another way than the service", ...sizes });
  }
}

function showCode() {
  const { asked, model, picture } = state;
  byId("copy").disabled = !asked;
  if (!asked) return;
  const call = { origin: ORIGIN, model: model.name, picture, keyed: api.hasKey(), ...asked };
  const language = document.querySelector("input[name=language]:checked").value;
  byId("code").firstElementChild.textContent = language === "curl" ? asCurl(call) : asPython(call);
}

// --- the picture ----------------------------------------------------------------------------------------------------

async function open(blob, name, title = name, address = "") {
  if (state.picture) URL.revokeObjectURL(state.picture.url);
  state.picture = { blob, name, title, address, url: URL.createObjectURL(blob) };
  state.detections = [];
  state.chosen = null;
  state.expected = null;
  state.map = null;
  showView();
  hideProblem();
  if (state.model) missing.reset(state.model.labels, true);
  for (const button of byId("samples").children) {
    button.setAttribute("aria-pressed", String(button.dataset.address === address));
  }
  const mine = state.picture;
  mine.size = await stage.show(mine);
  if (state.picture === mine) await detect();
}

async function fetchSample(address) {
  try {
    const response = await fetch(address);
    if (response.ok) return await response.blob();
  } catch {
    // told below
  }
  fail(new api.Problem({ title: "The sample cannot be fetched", detail: "The service did not send it." }));
  return null;
}

function addSamples() {
  byId("samples").replaceChildren(
    ...SAMPLES.map(({ file, title }) => {
      const address = `${ORIGIN}/playground/${file}`;
      const button = element("button", { type: "button", title }, element("img", { src: `playground/${file}`, alt: title }));
      button.dataset.address = address;
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", async () => {
        const blob = await fetchSample(address);
        if (blob) await open(blob, file, title, address);
      });
      return button;
    }),
  );
}

function openFirst(files) {
  const file = [...files].find(({ type }) => type.startsWith("image/")) ?? files[0];
  if (file) open(file, file.name || "picture");
}

// --- the settings ---------------------------------------------------------------------------------------------------

function currentMethod() {
  return state.model?.methods.find(({ name }) => name === byId("method").value);
}

function target() {
  const other = byId("other").value;
  return state.target === "class" && other ? `class:${other}` : state.target;
}

function setTarget(name) {
  const [kind] = name.split(":");
  state.target = kind;
  for (const radio of byId("targets").querySelectorAll("input")) radio.checked = radio.value === kind;
  byId("other-field").hidden = kind !== "class" || state.compare;
}

function setCompare(on) {
  state.compare = on;
  byId("compare").setAttribute("aria-pressed", String(on));
  setTarget(state.target);
  again();
}

function fillOther(detection) {
  const others = state.model.labels.filter((label) => label !== detection.label);
  fillSelect(byId("other"), [["", `${detection.label} (found)`], ...others], "");
}

function forgetOther() {
  fillSelect(byId("other"), [["", "the one found"]], "");
  byId("other").disabled = true;
}

function useModel(name) {
  const model = state.models.find((each) => each.name === name);
  state.model = model;
  missing.reset(model.labels, state.picture !== null);
  const ready = byId("readiness");
  ready.textContent = model.ready ? "ready" : "not ready";
  ready.classList.toggle("off", !model.ready);
  byId("model").title = model.description;
  byId("threshold").disabled = false;
  byId("threshold").value = model.score_threshold;
  byId("threshold-value").value = byId("threshold").valueAsNumber.toFixed(2);
  fillSelect(byId("nms"), model.nms.map(({ kind }) => kind), model.default_nms);
  fillSelect(byId("method"), model.methods.map((each) => each.name), model.methods[0]?.name);
  forgetOther();
  useNms();
  useMethod();
}

function useNms() {
  const { kind, explain_suppressed: _, ...numbers } = state.model.nms.find((each) => each.kind === byId("nms").value) ?? {};
  const parameters = Object.entries(numbers).map(([name, value]) => ({
    name,
    type: "number",
    default_value: value,
    minimum: name.startsWith("corr_") ? -1 : 0,
    maximum: name === "sigma" ? undefined : 1,
  }));
  readNms = buildForm(byId("nms-numbers"), "nms", parameters, detect);
}

function useMethod() {
  const method = currentMethod();
  byId("method-about").textContent = method?.description ?? "";
  const layers = method?.layers ?? [];
  const own = method?.default_layer ?? "";
  // The model's own may be a combination, which is none of the layers.
  fillSelect(byId("layer"), own.includes("+") ? [[own, own.replaceAll("+", " + ")], ...layers] : layers, own);
  byId("layer-field").hidden = !layers.length;
  useLayer();
  readParams = buildForm(byId("params"), "param", method?.params ?? [], again);
  const taken = new Set(method?.params.map(({ name }) => name));
  const budget = method?.sampling ? BUDGET.filter(({ name }) => !taken.has(name)) : [];
  readBudget = buildForm(byId("budget"), "budget", budget, again);
  byId("budget").hidden = !method?.sampling;
  const targets = method?.targets ?? [];
  byId("targets").replaceChildren(
    ...targets.map((name) => {
      const radio = element("input", { type: "radio", name: "target", value: name });
      const text = element("span", { textContent: targetName(name) });
      if (isSide(name)) text.append(" ", element("small", { textContent: name }));
      return element("label", {}, radio, text);
    }),
  );
  setTarget(targets.includes(state.target) ? state.target : (targets[0] ?? ""));
}

/** Offer the layers that the one chosen can be combined with. */
function useLayer() {
  const method = currentMethod();
  const chosen = byId("layer").value;
  const others = method?.combines_layers && method.layers.includes(chosen) ? method.layers.filter((name) => name !== chosen) : [];
  fillSelect(byId("with"), [["", "none"], ...others], "");
  byId("with-field").hidden = !others.length;
}

// --- the key --------------------------------------------------------------------------------------------------------

let afterKey = null;

function askForKey(action, refused) {
  afterKey = action;
  byId("key-refused").textContent = refused;
  byId("key-refused").hidden = !refused;
  byId("key").value = "";
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
}

// --- beginning ------------------------------------------------------------------------------------------------------

async function start() {
  try {
    state.models = await api.listModels();
  } catch (error) {
    fail(error, start);
    return;
  }
  hideProblem();
  fillSelect(byId("model"), state.models.map(({ name }) => name), state.models[0]?.name);
  say("");
  if (!state.models.length) {
    say("The service has no models.");
    return;
  }
  useModel(state.models[0].name);
  detect();
}

function listen() {
  byId("model").addEventListener("change", () => {
    leave();
    useModel(byId("model").value);
    detect();
  });
  byId("threshold").addEventListener("input", () => {
    byId("threshold-value").value = byId("threshold").valueAsNumber.toFixed(2);
    stage.dim(state.detections, byId("threshold").valueAsNumber);
    refresh(detect);
  });
  byId("nms").addEventListener("change", () => {
    useNms();
    detect();
  });
  byId("targets").addEventListener("change", (event) => {
    setTarget(event.target.value);
    if (state.compare) setCompare(false);
    else again();
  });
  byId("other").addEventListener("change", again);
  byId("method").addEventListener("change", () => {
    useMethod();
    again();
  });
  byId("layer").addEventListener("change", () => {
    useLayer();
    again();
  });
  byId("with").addEventListener("change", again);
  byId("suppressed").addEventListener("change", detect);
  byId("stop").addEventListener("click", () => inFlight?.abort(STOPPED));
  byId("evaluate").addEventListener("click", () => {
    state.evaluate = !state.evaluate;
    byId("evaluate").setAttribute("aria-pressed", String(state.evaluate));
    again();
  });
  byId("settings").addEventListener("submit", (event) => event.preventDefault());
  byId("opacity").addEventListener("input", () => stage.setOpacity(byId("opacity").valueAsNumber));
  byId("compare").addEventListener("click", () => setCompare(!state.compare));
  byId("clear").addEventListener("click", leave);
  byId("download").addEventListener("click", download);
  byId("copy").addEventListener("click", copy);
  for (const radio of document.querySelectorAll("input[name=language]")) radio.addEventListener("change", showCode);
  byId("file").addEventListener("change", () => {
    openFirst(byId("file").files);
    byId("file").value = ""; // so that the same file can be opened again
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || byId("key-dialog").open) return;
    if (stage.drawing) missing.stop();
    else if (state.chosen !== null || state.expected) leave();
  });
  document.addEventListener("paste", (event) => openFirst(event.clipboardData.files));
  listenToDrops();
  byId("key-form").addEventListener("submit", () => {
    api.useKey(byId("key").value.trim());
    byId("key").value = "";
    hideProblem();
    afterKey?.();
  });
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close());
}

function listenToDrops() {
  const drop = byId("drop");
  const holdsFile = (event) => event.dataTransfer?.types.includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    drop.hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.hidden = true;
  });
  document.addEventListener("drop", (event) => {
    if (!holdsFile(event)) return;
    event.preventDefault();
    drop.hidden = true;
    openFirst(event.dataTransfer.files);
  });
}

async function copy() {
  const button = byId("copy");
  try {
    await navigator.clipboard.writeText(byId("code").textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("code")); // no permission, or plain HTTP: ready for Ctrl-C
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

async function download() {
  const { map, picture } = state;
  const detection = state.detections.find(({ index }) => index === state.chosen) ?? state.candidate;
  const png = await stage.download(map, detection.box, byId("opacity").valueAsNumber);
  const stem = picture.name.replace(/\.\w+$/, "");
  const name = `${stem}-${detection.label}-${map.target.replace(":", "-")}.png`;
  const link = element("a", { href: URL.createObjectURL(png), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

addSamples();
listen();
start();
