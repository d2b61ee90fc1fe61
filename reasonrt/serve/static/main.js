// The page: asking, files, and one picture of what happened.

import { Canvas } from "./canvas.js";
import { byId, count, entries, isNumber, list, make, plural, seconds, text, words } from "./dom.js";
import { drawFigure } from "./figure.js";
import { authorsOf, looks, newRecord, read, take, votesOf } from "./record.js";
import { candidates, pairs } from "./search.js";
import { ask, LockedError, models, useKey } from "./server.js";
import { costs, Steps, votes } from "./steps.js";

const SCHEMA = "reasonrt.trace/1";
const canvas = new Canvas(byId("canvas"));
let shown = newRecord(); // the record on the page
let steps = null;
let numShown = 0; // of its events
let running = null; // aborts the request that is being answered
let isDue = false; // the page is drawn with the next frame
let ofCandidates = []; // what the candidates on the page were made of

// showing

function begin(record) {
  shown = record;
  numShown = 0;
  steps = new Steps(byId("steps"), looks(record));
  byId("shown").hidden = false;
  byId("hint").hidden = true;
  byId("asked").textContent = record.question || words(record.policy);
  update();
}

/** Draw what is new of the record, at most once in a frame. */
function update() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    render();
  });
}

function render() {
  const look = looks(shown);
  steps.look = look;
  for (; numShown < shown.events.length; numShown += 1) steps.add(shown.events[numShown]);
  drawFigure(byId("figure"), shown);
  byId("legend").replaceChildren(...authorsOf(shown).map((author) => make("li", { class: look(author).name },
    make("span", { class: "mark", "aria-hidden": "true" }, look(author).mark), ` ${author}`)));
  canvas.show(shown);
  showCandidates();
  byId("facts").replaceChildren(...answer(), ...votes(votesOf(shown), shown.answer), ...costs(shown, look), ...facts());
  byId("save").hidden = running !== null || !shown.events.length;
}

/** Anew where there are more of them: what a reader has opened stays open. */
function showCandidates() {
  const known = [shown, shown.details, shown.events.findLast((event) => event.kind === "sample" || event.kind === "search")];
  if (known.every((each, index) => each === ofCandidates[index])) return;
  ofCandidates = known;
  const found = candidates(shown);
  byId("candidates").hidden = !found.length;
  byId("candidates").replaceChildren(...found);
}

function answer() {
  if (shown.answer === undefined || shown.answer === null) return running ? [] : [make("h3", {}, "Answer"), make("p", {}, "none")];
  return [make("h3", {}, "Answer"), make("p", { class: "answer" }, text(shown.answer))];
}

/** An option nearly as it was given. */
const option = (value) => text(value).replaceAll('"', "").replaceAll(/[:,](?! )/g, "$& ");

function facts() {
  const { details, warnings } = shown;
  const stopping = details.stopping, documents = list(details.trace?.context);
  const known = [
    ["policy", [shown.policy, ...entries(shown.options).map(([name, value]) => `${name}=${option(value)}`)].join(" ")],
    ["took", seconds(shown.seconds)],
    ["ended by", shown.finish_reason],
    ["right answer", shown.facts?.right],
    ["stopping", stopping ? [words(stopping.action), stopping.fallback ?? "", isNumber(stopping.probe_tokens) ? `${plural(stopping.probe_tokens, "token")} of probes` : ""].filter(Boolean).join(", ") : ""],
    ["strategy", details.strategy],
    ["context", documents.map((each) => `${each.name || "unnamed"} (${count(each.characters)} characters)`).join("\n")],
    ["trace hash", details.trace?.trace_hash],
    ...entries(warnings).map(([name, reason]) => [`no ${words(name)}`, reason]),
  ];
  return known.some(([, value]) => value) ? [make("h3", {}, "Facts"), pairs(known)] : [];
}

function tell(problem) {
  byId("problem").hidden = !problem;
  byId("problem").textContent = problem;
}

// asking

async function connect() {
  try {
    const known = await models();
    const before = byId("policy").value;
    byId("policy").replaceChildren(...known.map((name) => make("option", {}, name)));
    if (known.includes(before)) byId("policy").value = before;
    byId("locked").hidden = true;
    byId("state").textContent = "ready";
    tell("");
  } catch (error) {
    byId("locked").hidden = !(error instanceof LockedError);
    tell(error instanceof LockedError ? "" : error.message);
    byId("state").textContent = error instanceof LockedError ? "asks for a key" : "not reached";
  }
}

async function body() {
  const options = byId("options").value.trim(), policy = byId("policy").value;
  const own = { trace: true };
  if (policy === "program_search") own.options = { trace: true };
  const files = [...byId("documents").files];
  if (files.length) own.context = await Promise.all(files.map(async (file) => ({ name: file.name, text: await file.text() })));
  const asked = { model: options ? `${policy}@${options}` : policy, messages: [{ role: "user", content: byId("question").value }], reasonrt: own };
  for (const [id, name] of [["temperature", "temperature"], ["seed", "seed"], ["tokens", "max_tokens"]]) {
    if (byId(id).value !== "") asked[name] = Number(byId(id).value);
  }
  return asked;
}

async function solve() {
  if (running || !byId("question").reportValidity()) return;
  const aborting = new AbortController();
  running = aborting;
  let state = "ended", record = shown;
  tell("");
  isAsking(true);
  try {
    const asked = await body();
    record = newRecord({ question: asked.messages[0].content, policy: asked.model });
    begin(record);
    for await (const chunk of ask(asked, aborting.signal)) {
      take(record, chunk);
      update();
    }
  } catch (error) {
    state = aborting.signal.aborted ? "stopped" : "failed";
    if (error instanceof LockedError) byId("locked").hidden = false;
    if (!aborting.signal.aborted) tell(error.message);
  } finally {
    running = null;
    isAsking(false);
    if (steps) render();
    if (shown === record) byId("state").textContent = state; // and not a file that was opened meanwhile
  }
}

function isAsking(is) {
  const hadFocus = [byId("go"), byId("stop")].includes(document.activeElement);
  byId("go").hidden = is;
  byId("stop").hidden = !is;
  if (hadFocus) byId(is ? "stop" : "go").focus();
  if (is) byId("state").textContent = "writes";
  document.body.classList.toggle("writing", is);
}

// files

async function open(file) {
  tell("");
  running?.abort();
  try {
    openText(await file.text());
    byId("state").textContent = file.name;
  } catch (error) {
    byId("shown").hidden = true;
    tell(`${file.name} cannot be shown: ${error.message}`);
  }
}

function openText(content) {
  const records = read(content);
  if (!records.length) throw new Error("there is nothing in it");
  byId("pick").hidden = records.length < 2;
  byId("record").replaceChildren(...records.map(([name], index) => make("option", { value: index }, name)));
  byId("record").onchange = () => begin(records[Number(byId("record").value)][1]);
  begin(records[0][1]);
}

function save() {
  const { facts: _, ...record } = shown;
  const blob = new Blob([JSON.stringify({ schema: SCHEMA, ...record }, null, 1)], { type: "application/json" });
  const link = make("a", { href: URL.createObjectURL(blob), download: "trace.json" });
  link.click();
  URL.revokeObjectURL(link.href);
}

// the page itself

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  solve();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("save").addEventListener("click", save);
byId("key").addEventListener("change", (event) => {
  useKey(event.target.value);
  connect();
});
byId("file").addEventListener("change", (event) => event.target.files[0] && open(event.target.files[0]));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) solve();
  if (event.key === "Escape") running?.abort();
});
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    document.body.classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });
}
let width = 0;
new ResizeObserver(() => {
  if (byId("figure").clientWidth === width) return; // its height is what is drawn
  width = byId("figure").clientWidth;
  requestAnimationFrame(() => drawFigure(byId("figure"), shown));
}).observe(byId("figure"));

if (location.hash.length > 1) {
  // `reasonrt trace FILE`: nothing can be asked here
  const answer = await fetch(`trace/${encodeURIComponent(location.hash.slice(1))}`);
  if (answer.ok) openText(await answer.text());
  else tell("this address shows no trace; run reasonrt trace FILE again");
} else {
  byId("ask").hidden = false;
  await connect();
}
