// The form for an object that should have been found: a box, drawn or typed, and a label.

import { fillSelect } from "./form.js";

const byId = (id) => document.getElementById(id);

/** The form. `ask(expected)` is called with {box, label}. */
export class Missing {
  #stage;
  #ask;
  #sides = ["left", "top", "right", "bottom"].map((side) => byId(`expected-${side}`));

  constructor(stage, ask) {
    this.#stage = stage;
    this.#ask = ask;
    byId("draw").addEventListener("click", () => (stage.drawing ? this.stop() : this.#draw()));
    byId("why-not").addEventListener("click", () => this.#submit());
    for (const side of this.#sides) side.addEventListener("input", () => this.#changed());
  }

  /** Offer these labels, and begin anew; with no picture nothing can be asked. */
  reset(labels, usable) {
    this.stop();
    fillSelect(byId("expected-label"), labels, labels.includes(byId("expected-label").value) ? byId("expected-label").value : labels[0]);
    for (const side of this.#sides) side.value = "";
    for (const control of [...this.#sides, byId("draw")]) control.disabled = !usable;
    this.tell("");
    this.#changed();
  }

  /** Say why it is missing; empty: nothing. */
  tell(sentence) {
    byId("why-not-answer").textContent = sentence;
    byId("why-not-answer").hidden = !sentence;
  }

  /** Draw no more. */
  stop() {
    this.#stage.stopDrawing();
    byId("draw").setAttribute("aria-pressed", "false");
  }

  #draw() {
    byId("draw").setAttribute("aria-pressed", "true");
    this.#stage.draw((box, whole) => {
      this.#sides.forEach((side, position) => (side.value = Math.round(10 * box[position]) / 10));
      this.#changed();
      if (!whole) return;
      this.stop();
      this.#submit();
    });
  }

  get #box() {
    const box = this.#sides.map((side) => side.valueAsNumber);
    return box.every(Number.isFinite) && box[0] < box[2] && box[1] < box[3] ? box : null;
  }

  #changed() {
    this.#stage.setExpected(this.#box);
    byId("why-not").disabled = !this.#box;
  }

  #submit() {
    if (this.#box) this.#ask({ box: this.#box, label: byId("expected-label").value });
  }
}
