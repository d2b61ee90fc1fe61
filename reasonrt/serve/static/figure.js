// One picture of a request over its tokens: who wrote them, what was thrown away, and what the signals said.

import { draw, entries, isNumber, number, plural, short, text, words } from "./dom.js";
import { lengthOf, looks, ofKind } from "./record.js";

const LEFT = 1, RIGHT = 44, RIBBON = 20, LOST = 9, ROW = 62, AXIS = 20;
const MOST_LOST_ROWS = 5, MOST_ROWS = 5;
const LEAST_RANGE = 0.2; // of a share: noise is not to look like a signal

/** Draw `record` into `figure`, as wide as that is. */
export function drawFigure(figure, record) {
  const width = Math.max(200, figure.clientWidth);
  const length = lengthOf(record);
  const x = (tokens) => LEFT + (tokens / length) * (width - LEFT - RIGHT);
  const parts = [];
  let y = 2;
  const steps = ofKind(record, "step");
  if (steps.length) {
    parts.push(...ribbon(record, steps, x, y));
    y += RIBBON + 3;
    const lost = lostRows(record, x);
    parts.push(...lost.parts.map((part) => place(part, 0, y)));
    y += lost.rows * (LOST + 1) + 6;
  }
  const answers = answerRow(record, x, y + 14);
  if (answers.length) {
    parts.push(draw("text", { class: "note", x: LEFT, y: y + 14 }, "answer of probes"), ...answers);
    y += 34;
  }
  for (const row of rowsOf(record).slice(0, MOST_ROWS)) {
    parts.push(place(signalRow(row, x, width), 0, y));
    y += ROW;
  }
  const stopped = record.details.stopping?.tokens;
  if (isNumber(stopped)) {
    parts.push(draw("line", { class: "stopped", x1: x(stopped), x2: x(stopped), y1: 0, y2: y }));
    const isLeft = x(stopped) > width / 2;
    const label = { class: "note", x: x(stopped) + (isLeft ? -4 : 4), y: y + 12, "text-anchor": isLeft ? "end" : "start" };
    parts.push(draw("text", label, `stopped at ${plural(stopped, "token")}`));
  }
  parts.push(...axis(length, x, y, isNumber(stopped) ? x(stopped) : null));
  const said = `${plural(length, "token")}; ${steps.length} steps; ${ofKind(record, "probe").length} probes`;
  const picture = draw("svg", { width, height: y + AXIS, role: "img", "aria-label": said }, parts);
  figure.replaceChildren(...(steps.length || rowsOf(record).length ? [picture] : []));
}

const place = (part, dx, dy) => draw("g", { transform: `translate(${dx},${dy})` }, part);

/** A block for each step; those of the target are the highest, so that colour is not needed to tell them. */
function ribbon(record, steps, x, y) {
  const look = looks(record);
  let begun = 0;
  return steps.map((step) => {
    const { name } = look(step.author);
    const height = name === "a0" ? RIBBON : name === "a-none" ? RIBBON / 3 : (RIBBON * 2) / 3;
    const wide = Math.max(1, x(begun + number(step.tokens)) - x(begun) - 1);
    const block = { class: `block ${name}`, x: x(begun), y: y + RIBBON - height, width: wide, height };
    begun += number(step.tokens);
    return draw("rect", block, draw("title", {}, `${step.author}: ${plural(step.tokens, "token")}`));
  });
}

/** What was thrown away hangs under the place where it was; what does not fit beside each other is put below. */
function lostRows(record, x) {
  const look = looks(record);
  const ends = [];
  const parts = ofKind(record, "discarded").map((event) => {
    const from = x(number(event.at_tokens) + number(event.kept_tokens));
    const wide = Math.max(1.5, x(number(event.tokens)) - x(0) - 1);
    let row = ends.findIndex((end) => end <= from);
    if (row < 0) row = Math.min(ends.length, MOST_LOST_ROWS - 1);
    ends[row] = from + wide;
    const { name } = look(event.author);
    const block = { class: `lost ${name}`, x: from, y: row * (LOST + 1), width: wide, height: LOST };
    return draw("rect", block, draw("title", {}, `thrown away: ${plural(event.tokens, "token")} of ${event.author}`));
  });
  return { parts, rows: ends.length };
}

/** Numbers over tokens: scores of steps, and signals of probes. The ones that the rule reads come first. */
function rowsOf(record) {
  const rows = new Map();
  const add = (name, tokens, value, isMarked) => {
    if (!isNumber(value)) return;
    if (!rows.has(name)) rows.set(name, { name, points: [] });
    rows.get(name).points.push({ tokens, value, isMarked });
  };
  const probed = new Set(ofKind(record, "probe").flatMap((event) => entries(event.signals).map(([name]) => name)));
  let tokens = 0;
  for (const event of record.events) {
    if (event.kind === "step") {
      tokens += number(event.tokens);
      if (event.is_complete !== false) for (const [name, value] of entries(event.scores)) if (!probed.has(name)) add(name, tokens, value, event.author === "target");
    }
    if (event.kind === "probe") for (const [name, value] of entries(event.signals)) add(name, event.at_tokens, value, false);
  }
  const rule = record.details.stopping?.rule;
  const read = rule?.signal?.name ?? rule?.upper?.signal?.name;
  if (rows.has(read)) rows.get(read).threshold = rule.threshold ?? rule.upper?.threshold;
  return [...rows.values()].sort((one, other) => (other.name === read) - (one.name === read));
}

function signalRow({ name, points, threshold }, x, width) {
  const values = [...points.map((point) => point.value), ...(isNumber(threshold) ? [threshold] : [])];
  const isShare = values.every((value) => value >= 0 && value <= 1);
  const high = Math.max(...values), low = Math.min(...values, isShare ? Math.max(0, high - LEAST_RANGE) : high);
  const y = (value) => ROW - 8 - ((value - low) / (high - low || 1)) * (ROW - 28);
  const line = points.map((point) => `${x(point.tokens)},${y(point.value)}`).join(" ");
  const last = points.at(-1);
  const above = { last: 4, threshold: 4 }; // of the two numbers beside the row
  if (isNumber(threshold) && Math.abs(y(threshold) - y(last.value)) < 11) {
    above.last += last.value >= threshold ? -5 : 6;
    above.threshold += last.value >= threshold ? 6 : -5;
  }
  return draw("g", { class: "signal" },
    draw("line", { class: "hair", x1: x(0), x2: width - RIGHT, y1: ROW - 8, y2: ROW - 8 }),
    draw("text", { class: "note", x: LEFT, y: 10 }, words(name)),
    isNumber(threshold) ? draw("line", { class: "threshold", x1: LEFT, x2: width - RIGHT, y1: y(threshold), y2: y(threshold) }) : "",
    isNumber(threshold) ? draw("text", { class: "note threshold", x: width - RIGHT + 5, y: y(threshold) + above.threshold }, short(threshold)) : "",
    points.length > 1 ? draw("polyline", { class: "line", points: line }) : "",
    points.map((point) => draw("circle", { class: point.isMarked ? "dot full" : "dot", cx: x(point.tokens), cy: y(point.value), r: 2.5 },
      draw("title", {}, `${words(name)} ${short(point.value)} at ${plural(point.tokens, "token")}`))),
    draw("text", { class: "note", x: width - RIGHT + 5, y: y(last.value) + above.last }, short(last.value)));
}

/** What probes answered: each answer once, for as long as it stood. */
function answerRow(record, x, y) {
  const parts = [];
  let before, free = -Infinity;
  for (const probe of ofKind(record, "probe").filter((each) => each.action !== "dropped" && each.answer !== null && each.answer !== undefined)) {
    const from = x(number(probe.at_tokens));
    const answer = text(probe.answer);
    parts.push(draw("circle", { class: answer === before ? "tick" : "tick new", cx: from, cy: y + 7, r: 2 }));
    if (answer !== before && from > free) {
      const shown = answer.length > 12 ? `${answer.slice(0, 11)}…` : answer;
      parts.push(draw("text", { class: "said", x: from, y }, shown));
      free = from + shown.length * 8 + 4;
    }
    before = answer;
  }
  return parts;
}

function axis(length, x, y, taken) {
  const step = [1, 2, 5].flatMap((digit) => [0, 1, 2, 3, 4, 5].map((power) => digit * 10 ** power))
    .sort((one, other) => one - other).find((each) => length / each <= 6) ?? length;
  const parts = [];
  for (let tokens = 0; tokens <= length; tokens += step) {
    if (taken !== null && Math.abs(x(tokens) - taken) < 130) continue;
    parts.push(draw("text", { class: "note", x: x(tokens), y: y + 12, "text-anchor": tokens ? "middle" : "start" }, tokens ? String(tokens) : "0 tokens"));
  }
  return parts;
}
