// What lies over each other on the page: the picture, the heat map, the boxes; and the sheet of all targets.

import { labelColor } from "./colors.js";
import { element, formatted, isSide, targetName } from "./form.js";
import { paint, viewOf } from "./maps.js";

// The longest side, in pixels, that a map is painted at on the page, and that a downloaded picture has.
const PAINTED = 1024;
const DOWNLOADED = 4096;
const TILE = 400;

const byId = (id) => document.getElementById(id);

/** Width and height that fit a longest side; smaller ones stay as they are unless they are to be enlarged. */
function fit(size, longest, enlarge = false) {
  const largest = Math.max(size.width, size.height);
  const scale = enlarge ? longest / largest : Math.min(1, longest / largest);
  return [Math.max(1, Math.round(size.width * scale)), Math.max(1, Math.round(size.height * scale))];
}

/** An element of SVG with attributes. */
function svg(name, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

/** A box in white within black: seen on any ground. */
function outline(context, [x1, y1, x2, y2], line) {
  for (const [color, width] of [["#000", 2 * line], ["#fff", line]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

/** The stage. `choose(index)` is called with the detection that the user wants explained. */
export class Stage {
  #image = byId("picture");
  #overlay = byId("overlay");
  #boxes = byId("boxes");
  #list = byId("list");
  #tiles = byId("tiles");
  #choose;
  #marks = byId("marks");
  #size = { width: 0, height: 0 };
  #shown = true;
  #sheet = [];
  #suppressed = [];
  #expected = null;
  #candidate = null;
  #drawn = null; // what is called with the box that is being drawn

  constructor(choose) {
    this.#choose = choose;
    for (const group of [this.#boxes, this.#list]) group.addEventListener("keydown", (event) => this.#move(event, group));
    byId("frame").addEventListener("pointerdown", (event) => this.#trace(event));
  }

  /** Show a picture; resolves to its size as the browser sees it, upright, or to null where it cannot show it. */
  async show(picture) {
    this.setDetections([], () => "");
    this.setSuppressed([]);
    this.clear();
    this.#image.hidden = true;
    byId("empty").hidden = true;
    byId("frame").hidden = true;
    this.#image.src = picture.url;
    this.#image.alt = picture.title;
    try {
      await this.#image.decode();
    } catch {
      this.#shown = false;
      return null;
    }
    this.#shown = true;
    this.#image.hidden = false;
    const size = { width: this.#image.naturalWidth, height: this.#image.naturalHeight };
    this.setSize(size);
    return size;
  }

  /** Lay out a frame for a picture of this size. */
  setSize(size) {
    this.#size = size;
    const frame = byId("frame");
    frame.style.setProperty("--ratio", size.width / size.height);
    frame.classList.toggle("unseen-picture", !this.#shown);
    frame.hidden = false;
    this.#marks.setAttribute("viewBox", `0 0 ${size.width} ${size.height}`);
  }

  /** Draw suppressed candidates in dashes; each is {box, reason}, and the reason shows where the pointer rests. */
  setSuppressed(candidates) {
    this.#suppressed = candidates;
    this.#redraw();
    const list = byId("dropped");
    list.hidden = candidates.length === 0;
    list.querySelector("summary").textContent = `${candidates.length} suppressed as duplicates`;
    list.querySelector("ol").replaceChildren(
      ...candidates.map(({ reason }, position) => {
        const row = element("li", { textContent: reason });
        for (const [event, on] of [["pointerenter", true], ["pointerleave", false]]) {
          row.addEventListener(event, () => {
            this.#marks.querySelector(`[data-position="${position}"]`)?.classList.toggle("lit", on);
          });
        }
        return row;
      }),
    );
  }

  /** Draw the box of an object that is expected; null: none. */
  setExpected(box) {
    this.#expected = box;
    this.#redraw();
  }

  /** Let a box be drawn: `drawn(box, whole)` is called as it grows, and when it is whole. */
  draw(drawn) {
    this.#drawn = drawn;
    byId("frame").classList.add("drawing");
    byId("frame").scrollIntoView({ block: "nearest" });
  }

  /** Whether a box can be drawn now. */
  get drawing() {
    return this.#drawn !== null;
  }

  stopDrawing() {
    this.#drawn = null;
    byId("frame").classList.remove("drawing");
  }

  /** Put boxes over the picture, and their list under it. */
  setDetections(detections, name) {
    const { width, height } = this.#size;
    const focused = document.activeElement?.dataset?.index;
    const group = [this.#boxes, this.#list].find((place) => place.contains(document.activeElement));
    const button = (detection, ...children) => {
      const made = element("button", { type: "button", tabIndex: -1 }, ...children);
      made.dataset.index = detection.index;
      made.setAttribute("aria-pressed", "false");
      made.style.setProperty("--label-color", labelColor(detection.label_id));
      made.addEventListener("click", () => this.#choose(detection.index));
      made.addEventListener("pointerenter", () => this.#light(detection.index, true));
      made.addEventListener("pointerleave", () => this.#light(detection.index, false));
      return made;
    };
    const boxes = detections.map((detection) => {
      const [x1, y1, x2, y2] = detection.box;
      const chip = element("span", { className: "chip" });
      chip.append(detection.label, element("b", { textContent: detection.score.toFixed(2) }));
      const box = button(detection, chip);
      box.className = "box";
      box.classList.toggle("at-top", y1 / height < 0.06);
      box.classList.toggle("at-right", x1 / width > 0.7);
      box.setAttribute("aria-label", `${name(detection)}, ${Math.round(x1)}, ${Math.round(y1)} to ${Math.round(x2)}, ${Math.round(y2)}`);
      box.style.left = `${(100 * x1) / width}%`;
      box.style.top = `${(100 * y1) / height}%`;
      box.style.width = `${(100 * (x2 - x1)) / width}%`;
      box.style.height = `${(100 * (y2 - y1)) / height}%`;
      // The smaller of two boxes lies on top, so that either can be clicked.
      box.style.zIndex = Math.round(1000 * (1 - ((x2 - x1) * (y2 - y1)) / (width * height)));
      return box;
    });
    const rows = detections.map((detection) => {
      const bar = element("span", { className: "bar-of-score" });
      bar.style.setProperty("--score", detection.score);
      const score = element("span", { className: "number", textContent: detection.score.toFixed(3) });
      const row = button(detection, element("span", { className: "dot" }), element("span", { textContent: detection.label }), bar, score);
      row.setAttribute("aria-label", name(detection));
      return row;
    });
    this.#boxes.replaceChildren(...boxes);
    this.#list.replaceChildren(...rows.map((row) => element("li", {}, row)));
    byId("found").hidden = detections.length === 0;
    for (const buttons of [boxes, rows]) if (buttons.length) buttons[0].tabIndex = 0;
    if (group) group.querySelector(`[data-index="${focused}"]`)?.focus();
  }

  /** Hide the boxes whose score is lower, until the service has answered. */
  dim(detections, threshold) {
    for (const { index, score } of detections) {
      for (const button of this.#buttons(index)) button.classList.toggle("below", score < threshold);
    }
  }

  /** Mark the detection that is explained; null: none. */
  mark(index) {
    this.#boxes.classList.toggle("explaining", index !== null);
    for (const button of this.#buttons()) {
      button.setAttribute("aria-pressed", String(index !== null && Number(button.dataset.index) === index));
    }
    if (index !== null) for (const button of this.#buttons(index)) this.#reach(button);
  }

  /** Show that an object is missing: its best candidate, and what that looked at; null: it has none. */
  showMissing(candidate, map, description) {
    this.clear();
    this.#candidate = candidate;
    this.#redraw();
    this.#boxes.classList.add("explaining");
    if (map) this.showMap(map, description);
  }

  /** Lay one heat map over the picture. */
  showMap(map, description) {
    this.#tiles.hidden = true;
    byId("frame").hidden = false;
    const [width, height] = fit(this.#size, PAINTED, true);
    const painted = paint(map, this.#whole, width, height);
    this.#overlay.width = width;
    this.#overlay.height = height;
    this.#overlay.getContext("2d").drawImage(painted, 0, 0);
    this.#overlay.setAttribute("aria-label", description);
    this.#overlay.hidden = false;
  }

  /** Set the maps of all targets side by side; `choose(target)` is called with the one that is clicked. */
  showSheet(maps, box, opacity, chosen, choose) {
    const view = viewOf(box, maps, this.#size);
    const [width, height] = fit({ width: view[2] - view[0], height: view[3] - view[1] }, TILE, true);
    this.#sheet = maps.map((map) => {
      const canvas = element("canvas", { width, height });
      return { canvas, box, view, painted: paint(map, view, width, height) };
    });
    this.#tiles.replaceChildren(
      ...maps.map((map, position) => {
        const caption = element("span", { className: "tile-title", textContent: targetName(map.target) });
        if (isSide(map.target)) caption.append(" ", element("small", { textContent: map.target }));
        const peak = element("span", { className: "number", textContent: `to ${formatted(map.max_value)}` });
        const tile = element("button", { type: "button", className: "tile" }, this.#sheet[position].canvas, caption, peak);
        tile.dataset.target = map.target;
        tile.setAttribute("aria-label", `${targetName(map.target)}: show it alone`);
        tile.classList.toggle("chosen", map.target === chosen);
        tile.addEventListener("click", () => choose(map.target));
        return tile;
      }),
    );
    byId("frame").hidden = true;
    this.#tiles.hidden = false;
    this.setOpacity(opacity);
  }

  /** How much of the picture the strongest colour covers, 0 to 1. */
  setOpacity(opacity) {
    this.#overlay.style.opacity = opacity;
    if (this.#tiles.hidden) return;
    for (const { canvas, painted, box, view } of this.#sheet) this.#compose(canvas, painted, box, view, opacity);
  }

  /** Take heat maps away, and show the picture. */
  clear() {
    this.#overlay.hidden = true;
    this.#tiles.hidden = true;
    this.#tiles.replaceChildren();
    this.#sheet = [];
    this.#candidate = null;
    this.#redraw();
    if (this.#size.width) byId("frame").hidden = false;
    this.mark(null);
  }

  /** Put focus on a detection's box. */
  focus(index) {
    this.#boxes.querySelector(`[data-index="${index}"]`)?.focus();
  }

  /** The picture with a heat map over it and the detection's box, as a PNG. */
  async download(map, box, opacity) {
    const [width, height] = fit(this.#size, DOWNLOADED);
    const canvas = element("canvas", { width, height });
    this.#compose(canvas, paint(map, this.#whole, width, height), box, this.#whole, opacity);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  get #whole() {
    return [0, 0, this.#size.width, this.#size.height];
  }

  /** Draw the part of the picture that lies in a view, a map painted for that view, and a box. */
  #compose(canvas, painted, box, [x1, y1, x2, y2], opacity) {
    const context = canvas.getContext("2d");
    const scale = canvas.width / (x2 - x1);
    const [width, height] = [canvas.width, canvas.height];
    context.fillStyle = "#808080";
    context.fillRect(0, 0, width, height);
    if (this.#shown) context.drawImage(this.#image, x1, y1, x2 - x1, y2 - y1, 0, 0, width, height);
    context.globalAlpha = opacity;
    context.drawImage(painted, 0, 0);
    context.globalAlpha = 1;
    const corners = [box[0] - x1, box[1] - y1, box[2] - x1, box[3] - y1].map((side) => side * scale);
    outline(context, corners, Math.max(1, Math.round(Math.max(width, height) / 200)));
  }

  /** Draw the boxes that cannot be chosen: what was suppressed, what is expected, and its candidate. */
  #redraw() {
    const rect = ([x1, y1, x2, y2], name, title = "") => {
      const group = svg("g", { class: name });
      for (const part of ["dark", "light"]) {
        group.append(svg("rect", { class: part, x: x1, y: y1, width: x2 - x1, height: y2 - y1 }));
      }
      if (title) group.append(Object.assign(svg("title"), { textContent: title }));
      return group;
    };
    const marks = this.#suppressed.map(({ box, reason }, position) => {
      const mark = rect(box, "suppressed", reason);
      mark.dataset.position = position;
      return mark;
    });
    if (this.#candidate) marks.push(rect(this.#candidate.box, "candidate"));
    if (this.#expected) marks.push(rect(this.#expected, "expected"));
    this.#marks.replaceChildren(...marks);
  }

  /** Follow the pointer while it draws a box. */
  #trace(event) {
    if (!this.#drawn || event.button !== 0) return;
    event.preventDefault();
    const frame = byId("frame");
    const place = ({ clientX, clientY }) => {
      const { left, top, width, height } = frame.getBoundingClientRect();
      const share = (value) => Math.min(1, Math.max(0, value));
      return [share((clientX - left) / width) * this.#size.width, share((clientY - top) / height) * this.#size.height];
    };
    const [startX, startY] = place(event);
    const follow = (moved) => {
      const [x, y] = place(moved);
      const box = [Math.min(startX, x), Math.min(startY, y), Math.max(startX, x), Math.max(startY, y)];
      this.#drawn?.(box, moved.type === "pointerup" && box[2] - box[0] >= 1 && box[3] - box[1] >= 1);
    };
    const ended = new AbortController();
    frame.setPointerCapture(event.pointerId);
    frame.addEventListener("pointermove", follow, ended);
    for (const end of ["pointerup", "pointercancel"]) {
      frame.addEventListener(end, (last) => {
        ended.abort();
        if (end === "pointerup") follow(last);
      }, ended);
    }
  }

  #buttons(index) {
    const which = index === undefined ? "" : `[data-index="${index}"]`;
    return document.querySelectorAll(`#boxes button${which}, #list button${which}`);
  }

  #light(index, on) {
    for (const button of this.#buttons(index)) button.classList.toggle("lit", on);
  }

  /** Make one button of its group the one that Tab reaches. */
  #reach(button) {
    const group = this.#boxes.contains(button) ? this.#boxes : this.#list;
    for (const other of group.querySelectorAll("button")) other.tabIndex = other === button ? 0 : -1;
  }

  #move(event, group) {
    const buttons = [...group.querySelectorAll("button:not(.below)")];
    const here = buttons.indexOf(document.activeElement);
    const there = {
      ArrowRight: here + 1,
      ArrowDown: here + 1,
      ArrowLeft: here - 1,
      ArrowUp: here - 1,
      Home: 0,
      End: buttons.length - 1,
    }[event.key];
    if (there === undefined || here < 0) return;
    event.preventDefault();
    const next = buttons[(there + buttons.length) % buttons.length];
    this.#reach(next);
    next.focus();
  }
}
