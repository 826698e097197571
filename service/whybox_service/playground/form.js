// Forms made from what a model says of itself.

/** Fill a <select>; entries are texts, or [value, text]. */
export function fillSelect(select, entries, chosen) {
  select.replaceChildren(
    ...entries.map((entry) => {
      const [value, text] = Array.isArray(entry) ? entry : [entry, entry];
      return new Option(text, value, value === chosen, value === chosen);
    }),
  );
  select.disabled = entries.length === 0;
}

/** Make an element with properties and children. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/**
 * Make a control for each parameter of a description, and call `changed` when one has a new valid value.
 *
 * Returns read(), which gives the values by name; a value that is not valid is left out.
 */
export function buildForm(container, prefix, parameters, changed) {
  const readers = new Map();
  container.replaceChildren(
    ...parameters.map((parameter) => {
      const id = `${prefix}-${parameter.name}`;
      const about = `${id}-about`;
      const { control, read } = makeControl(parameter);
      const hint = element("p", { id: about, className: "hint", textContent: describe(parameter) });
      control.id = id;
      control.name = parameter.name;
      control.setAttribute("aria-describedby", about);
      control.addEventListener("change", () => {
        const valid = control.checkValidity();
        control.setAttribute("aria-invalid", String(!valid));
        hint.classList.toggle("refused", !valid);
        hint.textContent = valid ? describe(parameter) : control.validationMessage;
        if (valid) changed();
      });
      readers.set(parameter.name, () => (control.checkValidity() ? read() : undefined));
      const row = element("div", { className: "field row" });
      row.append(element("label", { htmlFor: id, textContent: words(parameter.name) }), control);
      return element("div", { className: "param" }, row, hint);
    }),
  );
  return () =>
    Object.fromEntries(
      [...readers].map(([name, read]) => [name, read()]).filter(([, value]) => value !== undefined),
    );
}

function makeControl(parameter) {
  const { type, default_value: value, minimum, maximum, choices = [] } = parameter;
  if (type === "boolean") {
    const control = element("input", { type: "checkbox", checked: Boolean(value) });
    return { control, read: () => control.checked };
  }
  if (choices.length) {
    const control = document.createElement("select");
    fillSelect(control, choices, value);
    return { control, read: () => control.value };
  }
  if (type === "string") {
    const control = element("input", { type: "text", value: value ?? "" });
    return { control, read: () => control.value };
  }
  const required = !parameter.optional;
  const control = element("input", { type: "number", required, step: type === "integer" ? "1" : "any" });
  if (minimum !== undefined) control.min = minimum;
  if (maximum !== undefined) control.max = maximum;
  control.value = value ?? "";
  return { control, read: () => (control.value === "" ? undefined : control.valueAsNumber) };
}

function describe({ description = "", minimum, maximum }) {
  const low = minimum !== undefined && `from ${minimum}`;
  const high = maximum !== undefined && `to ${maximum}`;
  const bounds = [low, high].filter(Boolean).join(" ");
  return [description, bounds].filter(Boolean).join("; ");
}

/** A name of the contract as it is read: "iou_threshold" is "IoU threshold". */
export function words(name) {
  const text = name.replaceAll("_", " ").replace(/\biou\b/, "IoU");
  return text[0].toUpperCase() + text.slice(1);
}

const TARGETS = { class: "Class", x1: "Left", y1: "Top", x2: "Right", y2: "Bottom", combined: "Combined" };

/** What a target is called: "x1" is "Left". */
export function targetName(name) {
  return TARGETS[name] ?? words(name.replace(":", " "));
}

/** A side of the box is also known by its coordinate. */
export function isSide(name) {
  return /^[xy][12]$/.test(name);
}

/** A number in three significant digits. */
export function formatted(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 0.001 && size < 10000 ? String(Number(value.toPrecision(3))) : value.toExponential(2);
}
