// Candidates: the programs of a search, or the samples of a vote.

import { isNumber, list, make, percent, plural, seconds, text } from "./dom.js";
import { ofKind } from "./record.js";

/** All candidates, beside each other; nothing where there are none. */
export function candidates(record) {
  const trace = record.details.trace;
  const found = list(trace?.trials).map((each) => trial(each, trace));
  const samples = ofKind(record, "sample").map((each) => sample(each));
  const progress = found.length ? [] : ofKind(record, "search").slice(-1).map(running);
  if (!found.length && !samples.length && !progress.length) return [];
  return [...progress, make("div", { class: "trials" }, found, samples)];
}

const running = (known) => make("p", { class: "facts" },
  `${known.ended} of ${plural(known.candidates, "candidate")} ended · ${plural(known.programs, "program")} · `
  + `${plural(known.sub_calls, "sub-question")} · ${plural(known.tokens, "token")}`);

/** Names and values; what is not known is left out. */
export function pairs(known) {
  const shown = known.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make("dl", {}, shown.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, text(value))]));
}

const labelled = (name, value) => (value ? [make("div", { class: "facts" }, name), make("pre", { tabindex: "0" }, text(value))] : []);

function sample(event) {
  return make("article", { class: "trial" }, make("h3", {}, `sample ${event.index + 1}: ${event.answer ?? "no answer"}`),
    make("p", { class: "facts" }, plural(event.tokens, "token")), make("details", {}, make("summary", {}, "its text"), make("pre", { tabindex: "0" }, text(event.text))));
}

function trial(each, trace) {
  const isChosen = each.answer !== null && each.answer === trace.answer;
  const status = each.status === "final" || each.status === "failed" ? each.status : "";
  return make("article", { class: isChosen ? "trial chosen" : "trial" },
    make("h3", { class: status }, `candidate ${text(each.index)}: ${text(each.status)}`),
    pairs([
      ["answer", each.answer ?? "none"], ["tokens", each.num_tokens], ["confidence", list(each.confidences).map(percent).join(", ")],
      ["context read", percent(each.coverage)], ["spans refuted", each.num_refuted || null], ["errors", each.num_errors || null],
      ["sub-calls", each.num_sub_calls || null],
    ]),
    list(each.evidence).map((span) => evidence(span, trace.context)),
    list(each.turns).map(turn));
}

function evidence(span, context) {
  const name = list(context)[span.document]?.name || `document ${span.document}`;
  return make("blockquote", {}, make("div", { class: "facts" }, `${name}, characters ${span.start} to ${span.end}`), text(span.text));
}

function turn(each, number) {
  const parts = [`turn ${number + 1}`, text(each.ending), seconds(each.seconds), isNumber(each.confidence) ? `confidence ${percent(each.confidence)}` : ""];
  const calls = list(each.calls).map((call) => `${text(call.name)} ${text(call.detail ?? "")}`).join("\n");
  return make("details", {}, make("summary", {}, parts.filter(Boolean).join(" · ")),
    labelled("message", each.text), labelled("program", each.code), labelled("host calls", calls),
    labelled("notes", list(each.notes).join("\n")), labelled("observation", each.observation));
}
