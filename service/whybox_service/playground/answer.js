// What came of a request, besides the picture: times, warnings, the request's id; or the problem.

import { element, formatted, words } from "./form.js";

const byId = (id) => document.getElementById(id);

const milliseconds = (seconds) => (1000 * seconds).toFixed(seconds < 0.01 ? 2 : 1);

/** Show an answer's times, warnings and id. */
export function showAnswer({ body, requestId, seconds }) {
  const stages = [...body.stages, { name: "round trip", seconds }];
  const longest = Math.max(...stages.map((stage) => stage.seconds), 1e-9);
  byId("stages").tBodies[0].replaceChildren(
    ...stages.map((stage) => {
      const bar = element("span", { className: "bar-of-time" });
      bar.style.setProperty("--share", stage.seconds / longest);
      return element(
        "tr",
        {},
        element("th", { scope: "row", textContent: stage.name }),
        element("td", { className: "bars" }, bar),
        element("td", { className: "number", textContent: `${milliseconds(stage.seconds)} ms` }),
      );
    }),
  );
  byId("warnings").replaceChildren(...body.warnings.map((text) => element("li", { textContent: text })));
  byId("warnings").hidden = body.warnings.length === 0;
  byId("request-id").textContent = requestId;
  byId("stages").hidden = byId("request").hidden = false;
  byId("answer-none").hidden = true;
}

/** Show how good a map is, by the measures that the model describes; nothing where nothing was measured. */
export function showMeasures(values, described) {
  const about = new Map(described.map((measure) => [measure.name, measure]));
  byId("measures").tBodies[0].replaceChildren(
    ...Object.entries(values).map(([name, value]) => {
      const { protocol = "", better = "" } = about.get(name) ?? {};
      const head = element("th", { scope: "row", textContent: words(name), title: protocol });
      const hint = element("td", { className: "hint", textContent: better && `${better} is better` });
      return element("tr", {}, head, hint, element("td", { className: "number", textContent: formatted(value) }));
    }),
  );
  byId("measures").hidden = Object.keys(values).length === 0;
}

/** Show a problem as text, with what was expected; `retry` is offered where asking again can help. */
export function showProblem(problem, retry) {
  const rows = [
    ["Field", problem.field],
    ["Expected", problem.expected],
    ["Got", problem.got],
    ["Request", problem.requestId],
  ].filter(([, text]) => text);
  const facts = element("dl", {});
  for (const [name, text] of rows) {
    facts.append(element("dt", { textContent: name }), element("dd", { textContent: text }));
  }
  const shown = [element("h2", { textContent: problem.title || "Something went wrong" })];
  if (problem.detail && problem.detail !== problem.title) shown.push(element("p", { textContent: problem.detail }));
  if (rows.length) shown.push(facts);
  const actions = element("div", { className: "actions" });
  if (problem.retryable && retry) {
    if (problem.retryAfter) {
      const seconds = Math.ceil(problem.retryAfter);
      shown.push(element("p", { className: "hint", textContent: `The service asks to wait ${seconds} s.` }));
    }
    const again = element("button", { type: "button", className: "again", textContent: "Try again" });
    again.addEventListener("click", retry);
    actions.append(again);
  }
  const close = element("button", { type: "button", className: "dismiss", textContent: "Dismiss" });
  close.addEventListener("click", hideProblem);
  actions.append(close);
  byId("problem").replaceChildren(...shown, actions);
  byId("problem").hidden = false;
}

/** Take the problem away. */
export function hideProblem() {
  byId("problem").hidden = true;
  byId("problem").replaceChildren();
}
