// What happened in one request: from a stream as it comes, or from a file.
//
// A record is {question, policy, options, events, answer, finish_reason, seconds, usage, details, warnings}; each event
// has a `kind`: step, discarded, verification, probe, sample, search or canvas.

import { entries, isNumber, isObject, list, number, text } from "./dom.js";

export const newRecord = (asked = {}) => ({ question: "", policy: "", events: [], details: {}, warnings: {}, ...asked });

export const ofKind = (record, kind) => record.events.filter((event) => event.kind === kind);

/** Take one chunk of a streamed chat completion; an error in it is thrown. */
export function take(record, chunk) {
  if (chunk.error) throw new Error(text(chunk.error.message));
  for (const choice of list(chunk.choices)) {
    const own = choice.reasonrt;
    if (choice.delta?.content) record.answer = (record.answer ?? "") + choice.delta.content;
    if (own?.step) record.events.push({ kind: "step", ...own.step });
    else if (own?.event) record.events.push(own.event);
    else if (own) end(record, own);
  }
  if (chunk.reasonrt?.usage) record.usage = chunk.reasonrt.usage;
}

function end(record, own) {
  record.finish_reason = own.finish_reason;
  record.seconds = own.seconds;
  record.details = isObject(own.details) ? own.details : {};
  record.warnings = isObject(own.warnings) ? own.warnings : {};
}

/** What a file holds, as [name, record] pairs. */
export function read(content) {
  const first = parse(content) ?? parse(content.slice(0, (content.indexOf("\n") + 1 || content.length + 1) - 1));
  const schema = isObject(first) ? text(first.schema) : "";
  if (schema.startsWith("reasonrt.trace/")) return [["", ofTrace(first)]];
  if (schema.startsWith("reasonrt.program_trace/")) return [["", ofPrograms(first)]];
  if (schema.startsWith("reasonrt.traces/")) return content.split("\n").slice(1).filter(Boolean).map(ofCheckpoints);
  if (isObject(first) && first.object === "chat.completion") return list(first.choices).map((choice) => ofChoice(first, choice));
  throw new Error("it is no trace of reasonrt; write one with solve --trace, ask --trace or calibrate traces");
}

function parse(content) {
  try {
    return JSON.parse(content);
  } catch {
    return undefined;
  }
}

const ofTrace = (value) => ({ ...newRecord(value), events: list(value.events).filter(isObject) });

function ofPrograms(value) {
  const ended = { answer: value.answer, finish_reason: value.status, details: { trace: value, route: "programs" } };
  return { ...newRecord(), question: value.question, policy: "program_search", ...ended };
}

function ofChoice(whole, choice) {
  const own = isObject(choice.reasonrt) ? choice.reasonrt : {};
  const steps = list(own.trace).map((step) => ({ kind: "step", ...step }));
  const events = [...steps, ...list(own.events)].sort((one, other) => number(one.seconds) - number(other.seconds));
  const record = newRecord({ policy: text(whole.model), events, answer: choice.message?.content, usage: whole.reasonrt?.usage });
  end(record, own);
  return [`choice ${number(choice.index) + 1}`, record];
}

/** One problem of `calibrate traces`: probes without a text. */
function ofCheckpoints(line) {
  const trace = JSON.parse(line);
  const events = list(trace.checkpoints).map((point) => ({
    kind: "probe", author: "target", at_tokens: point.tokens, answer: point.answer, signals: point.signals,
    tokens: number(point.probe_tokens), action: "recorded",
  }));
  const facts = { right: trace.gold, full_tokens: trace.full_tokens };
  const record = newRecord({ question: trace.problem_id, policy: "calibrate traces", events, answer: trace.full_answer, facts });
  return [text(trace.problem_id), record];
}

/** Authors in their order: the target, the draft, the others as they come. Those who are no engine are last. */
export function authorsOf(record) {
  const found = new Set(record.events.map((event) => event.author).filter((author) => typeof author === "string"));
  for (const name of Object.keys(record.usage ?? {})) found.add(name);
  const rank = (author) => (author === "target" ? 0 : author === "draft" ? 1 : INSERTED.has(author) ? 3 : 2);
  return [...found].sort((one, other) => rank(one) - rank(other));
}

/** Of steps that no engine has generated. */
export const INSERTED = new Set(["stopping", "closing", "program_search"]);

const MARKS = ["●", "○", "◆", "◇", "▲"];

/** How an author is told from the others: a class for the colour, and a mark. */
export function looks(record) {
  const engines = authorsOf(record).filter((author) => !INSERTED.has(author));
  const place = (author) => (author === "target" ? 0 : author === "draft" ? 1 : 2 + (others.indexOf(author) % 3));
  const others = engines.filter((author) => author !== "target" && author !== "draft");
  return (author) => (INSERTED.has(author) ? { name: "a-none", mark: "▫" } : { name: `a${place(author)}`, mark: MARKS[place(author)] });
}

/** Tokens from the first to the last of the text. */
export function lengthOf(record) {
  const written = ofKind(record, "step").reduce((sum, step) => sum + number(step.tokens), 0);
  const probed = ofKind(record, "probe").map((probe) => number(probe.at_tokens));
  const lost = ofKind(record, "discarded").map((event) => number(event.at_tokens) + number(event.tokens));
  return Math.max(1, written, number(record.facts?.full_tokens), ...probed, ...lost);
}

/** Answers and how much each is believed, in descending order; empty where nothing was voted on. */
export function votesOf(record) {
  const shares = entries(record.details.trace?.shares ?? record.details.shares);
  if (shares.length) return sorted(shares);
  const samples = ofKind(record, "sample");
  if (samples.length) {
    const counts = new Map();
    for (const { answer } of samples) counts.set(answer ?? null, (counts.get(answer ?? null) ?? 0) + 1 / samples.length);
    return sorted([...counts].map(([answer, share]) => [answer ?? "no answer", share]));
  }
  const counted = entries(ofKind(record, "search").at(-1)?.answers);
  const sum = counted.reduce((total, [, votes]) => total + number(votes), 0);
  return sorted(counted.map(([answer, votes]) => [answer, number(votes) / sum]));
}

const sorted = (shares) => shares.filter(([, share]) => isNumber(share)).sort(([, one], [, other]) => other - one);
