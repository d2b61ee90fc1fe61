// Steps as they come, and between them what was paid for beside them.

import { count, entries, isNumber, make, number, percent, plural, seconds, short, text, words } from "./dom.js";

const WHY = {
  rejected: "rejected", ahead: "drafted ahead, in vain", stopped: "written after the stop", limit: "over the limit",
  reopened: "opens the thinking again", answer: "written again as it was asked for",
};

/** Marks of thinking stand back. */
const tagged = (said) => (said || "(the end)").split(/(<\/?think>)/).map((part, index) => (index % 2 ? make("span", { class: "tag" }, part) : part));

/** The list of steps in `section`; `add` appends what an event shows, and touches nothing that stands. */
export class Steps {
  constructor(section, look) {
    this.look = look;
    this.list = make("ol");
    this.lost = null;
    section.replaceChildren(this.list);
  }

  add(event) {
    if (event.kind === "step") {
      this.lost = null;
      this.list.append(this.step(event));
    } else if (event.kind === "discarded") this.addLost(event);
    else if (event.kind === "probe") this.list.append(this.probe(event));
    else if (event.kind === "verification") this.list.append(this.verification(event));
  }

  step(event) {
    const facts = [
      plural(event.tokens, "token"), ...entries(event.scores).map(([name, value]) => `${words(name)} ${short(value)}`),
      isNumber(event.mean_logprob) ? `log p ${short(event.mean_logprob)}` : "", seconds(event.seconds),
    ];
    const classes = `step ${this.look(event.author).name}${event.is_complete === false ? " begun" : ""}`;
    return make("li", { class: classes }, this.author(event.author), make("p", { class: "said" }, tagged(text(event.text).trim())), this.facts(facts));
  }

  author(author) {
    return make("span", { class: "author" }, make("span", { class: "mark", "aria-hidden": "true" }, this.look(author).mark), ` ${author}`);
  }

  facts(facts) {
    return make("span", { class: "facts" }, facts.filter(Boolean).flatMap((fact, index) => [index ? " · " : "", make("span", {}, fact)]));
  }

  /** All that was thrown away at one place is one line, which opens; a rejected step is told before what came after it. */
  addLost(event) {
    if (this.lost === null) {
      this.lost = { events: [], item: make("li", { class: "gone" }) };
      this.list.append(this.lost.item);
    }
    const { events, item } = this.lost;
    events.push(event);
    events.sort((one, other) => (other.why === "rejected") - (one.why === "rejected"));
    const tokens = events.reduce((sum, each) => sum + number(each.tokens), 0);
    item.className = `gone ${this.look(events[0].author).name}`;
    item.replaceChildren(this.author(events[0].author), make("details", {},
      make("summary", {}, make("s", {}, text(events[0].text).trim() || "(the end)"), ` ${WHY[events[0].why] ?? words(events[0].why)}`),
      make("ul", {}, events.map((each) => this.lostItem(each)))),
      this.facts([`${plural(tokens, "token")} thrown away`]));
  }

  lostItem(event) {
    const kept = number(event.kept_tokens);
    const facts = [
      event.author, WHY[event.why] ?? words(event.why), plural(event.tokens, "token"), kept ? `the first ${count(kept)} kept` : "",
      ...entries(event.scores).map(([name, value]) => `${words(name)} ${short(value)}`),
      isNumber(event.mean_logprob) ? `log p ${short(event.mean_logprob)}` : "", seconds(event.seconds),
    ];
    return make("li", {}, make("s", {}, text(event.text).trim() || "(the end)"), make("br"), this.facts(facts));
  }

  probe(event) {
    const said = event.action === "dropped" ? "dropped" : event.answer === null || event.answer === undefined ? "no answer" : text(event.answer);
    const facts = [...entries(event.signals).map(([name, value]) => `${words(name)} ${short(value)}`), plural(event.tokens, "token")];
    const action = { go_on: "goes on", answer: "stops here", give_up: "gives up", unused: "not used" }[event.action];
    return make("li", { class: "aside" }, make("span", { class: "author" }, "◇ probe"), make("p", {}, said, action ? make("em", {}, ` ${action}`) : "", " ", this.facts(facts)));
  }

  verification(event) {
    const kept = event.kept_tokens === event.tokens ? "agrees with the step" : `keeps ${count(event.kept_tokens)} of ${plural(event.tokens, "token")}`;
    return make("li", { class: "aside" }, make("span", { class: "author" }, "✓ reading"), make("p", {}, `${event.author} ${kept} `, this.facts([seconds(event.took_s)])));
  }
}

/** What the request has cost, engine by engine. */
export function costs(record, look) {
  const rows = entries(record.usage);
  if (!rows.length) return [];
  const most = Math.max(1, ...rows.map(([, spent]) => number(spent.generated)));
  const head = ["engine", "written", "thrown away", "read", "cached", "passes"];
  return [make("h3", {}, "Cost"), make("table", {},
    make("thead", {}, make("tr", {}, head.map((name, index) => make("th", { scope: "col", class: index ? "n" : null }, name)))),
    make("tbody", {}, rows.map(([name, spent]) => make("tr", { class: look(name).name },
      make("th", { scope: "row" }, make("span", { class: "mark", "aria-hidden": "true" }, look(name).mark), ` ${name}`,
        make("meter", { value: number(spent.generated), max: most, title: `${count(spent.generated)} tokens` })),
      ["generated", "discarded", "prefilled", "cached", "passes"].map((key) => make("td", { class: "n" }, count(spent[key]))))))),
  ];
}

/** What was believed, and how much. */
export function votes(shares, chosen) {
  if (!shares.length) return [];
  return [make("h3", {}, "Votes"), make("div", { class: "shares" }, shares.flatMap(([answer, share]) => [
    make("span", { class: answer === chosen ? "chosen" : null }, answer), make("meter", { value: share, max: 1 }), make("span", { class: "n" }, percent(share)),
  ]))];
}
