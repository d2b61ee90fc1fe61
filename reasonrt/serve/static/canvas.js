// A block of masked tokens filling up, pass by pass.

import { list, make, number, text } from "./dom.js";
import { ofKind } from "./record.js";

const FRAME_MS = 90;

/** The canvas of `record` in `section`: the last pass while it is written, any pass by the slider, or played. */
export class Canvas {
  constructor(section) {
    this.section = section;
    this.cells = make("p", { class: "cells" });
    this.slider = make("input", { type: "range", min: 0, value: 0, "aria-label": "pass" });
    this.label = make("output", { class: "facts" });
    this.button = make("button", { type: "button" }, "Play");
    this.slider.addEventListener("input", () => this.draw());
    this.button.addEventListener("click", () => (this.timer ? this.stop() : this.play()));
    section.replaceChildren(this.cells, make("p", { class: "row" }, this.button, this.slider, this.label));
  }

  show(record) {
    const events = ofKind(record, "canvas");
    this.passes = events.flatMap((event) => list(event.passes)).map((masked) => new Map(list(masked).map(([place, said, sure]) => [place, { said, sure }])));
    this.texts = [];
    for (const event of events) list(event.texts).forEach((said, index) => { this.texts[number(event.at_tokens) + index] = text(said); });
    this.section.hidden = !this.passes.length;
    if (!this.passes.length || this.timer) return;
    this.slider.max = this.passes.length; // the last one is after all passes
    this.slider.value = this.passes.length;
    this.draw();
  }

  play() {
    this.slider.value = 0;
    this.button.textContent = "Pause";
    this.timer = setInterval(() => {
      this.slider.value = Number(this.slider.value) + 1;
      this.draw();
      if (Number(this.slider.value) >= this.passes.length) this.stop();
    }, FRAME_MS);
    this.draw();
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.textContent = "Play";
  }

  draw() {
    const at = Number(this.slider.value);
    const masked = this.passes[at] ?? new Map(), before = this.passes[at - 1] ?? new Map();
    const seen = this.passes.slice(0, at + 1).flatMap((pass) => [...pass.keys()]);
    const last = at >= this.passes.length ? Math.max(this.texts.length, 0) : Math.max(-1, ...seen) + 1;
    const expected = new Map(this.passes.slice(0, at).flatMap((pass) => [...pass]));
    const cells = [];
    for (let place = 0; place < last; place += 1) {
      const guess = masked.get(place);
      const said = guess?.said ?? this.texts[place] ?? expected.get(place)?.said;
      if (said === undefined) continue;
      const sure = guess ? Math.min(3, Math.floor(4 * number(guess.sure))) : 0;
      const kind = guess ? `masked p${sure}` : before.has(place) ? "new" : "";
      cells.push(make("span", { class: `cell ${kind}` }, text(said).replaceAll("\n", "⏎")));
    }
    this.cells.replaceChildren(...cells);
    this.label.textContent = `pass ${Math.min(at + 1, this.passes.length)} of ${this.passes.length}, ${this.texts.length} tokens`;
  }
}
