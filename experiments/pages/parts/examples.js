// The browser of examples of one comparison.
const CHOICES = { task: ".task", which: ".which", example: ".example", first: ".first", second: ".second" };

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
}

function number(value, digits) {
  return value === undefined ? "\u2013" : value.toFixed(digits);
}

class Examples {
  constructor(section, content, texts) {
    this.section = section;
    this.content = content;
    this.texts = texts;
    for (const [name, where] of Object.entries(CHOICES)) this[name] = section.querySelector(where);
    this.sought = section.querySelector(".sought");
    this.bracketed = section.querySelector(".bracketed");
    fill(this.task, content.tasks.map((one, place) => [place, one.task]));
    fill(this.first, content.arms.map((arm, place) => [place, arm]));
    fill(this.second, [["", "no other"], ...content.arms.map((arm, place) => [place, arm])]);
    this.chooseArms();
    for (const select of [this.task, this.which, this.first, this.second]) select.addEventListener("change", () => this.list());
    this.sought.addEventListener("input", () => this.list());
    this.example.addEventListener("change", () => this.show());
    this.bracketed.addEventListener("change", () => this.show());
    section.querySelector(".previous").addEventListener("click", () => this.step(-1));
    section.querySelector(".next").addEventListener("click", () => this.step(1));
    section.querySelector(".browser").hidden = false;
    this.list();
  }

  chooseArms() {
    const { arms, sorts } = this.content;
    const own = sorts.indexOf("method");
    const base = ["sd", "vanilla"].map((arm) => arms.indexOf(arm)).find((place) => place >= 0 && place !== own);
    this.first.value = String(Math.max(own, 0));
    this.second.value = base === undefined ? "" : String(base);
  }

  get examples() {
    return this.content.tasks[this.task.value].examples;
  }

  row(example, select) {
    return select.value === "" ? undefined : example.rows.find((row) => row.arm === Number(select.value));
  }

  text(row) {
    return row?.text === undefined ? "" : this.texts[row.text].join("");
  }

  fits(example) {
    const sought = this.sought.value.toLowerCase();
    const spoken = [example.prompt ?? "", example.reference ?? "", ...example.rows.map((row) => this.text(row))];
    if (sought && !spoken.some((text) => text.toLowerCase().includes(sought))) return false;
    const [one, other] = [this.row(example, this.first), this.row(example, this.second)];
    if (this.which.value === "differ") return Boolean(one && other) && one.text !== other.text;
    if (this.which.value === "worse") return (one?.quality ?? 1) < (other?.quality ?? 1);
    return this.which.value !== "failed" || example.rows.some((row) => row.error !== undefined);
  }

  list() {
    const before = this.example.value;
    const fitting = this.examples.map((example, place) => [place, example]).filter(([, example]) => this.fits(example));
    const level = (example) => (example.level === null ? "" : `, level ${example.level}`);
    fill(this.example, fitting.map(([place, example]) => [place, `${place + 1}${level(example)} (${example.id})`]));
    if (fitting.some(([place]) => String(place) === before)) this.example.value = before;
    say(`${fitting.length} of ${this.examples.length} examples`);
    this.show();
  }

  step(by) {
    const count = this.example.options.length;
    if (count) this.example.selectedIndex = (this.example.selectedIndex + by + count) % count;
    this.show();
  }

  show() {
    const [asked, answers, overview] = [".asked", ".answers", ".overview"].map((where) => this.section.querySelector(where));
    const example = this.examples[this.example.value];
    if (example === undefined) {
      asked.replaceChildren();
      overview.replaceChildren();
      answers.replaceChildren(make("p", {}, "No example fits."));
      return;
    }
    asked.replaceChildren(...this.question(example));
    const chosen = [this.first, this.second].filter((select) => select.value !== "");
    const rows = chosen.map((select) => this.row(example, select));
    const spoken = rows.length === 2 && rows.every((row) => row?.text !== undefined);
    const parting = spoken ? partAt(this.text(rows[0]), this.text(rows[1])) : null;
    answers.replaceChildren(...rows.map((row, place) => this.answer(this.content.arms[chosen[place].value], row, parting)));
    this.overview(overview, example);
  }

  question(example) {
    const told = [];
    for (const [key, title] of [["prompt", "Prompt"], ["reference", "Reference"]]) {
      if (example[key]) told.push(make("h3", {}, title), make("p", { dir: "auto" }, example[key]));
    }
    return told;
  }

  answer(arm, row, parting) {
    const one = make("article", { class: "one" }, make("h3", {}, make("bdi", {}, arm)));
    if (row === undefined) one.append(make("p", { class: "note" }, "This arm has no row for the example."));
    else if (row.error !== undefined) one.append(make("p", { class: "error" }, `failed: ${row.error}`));
    else {
      const text = answerText(row, this.texts[row.text], parting, this.bracketed.checked);
      const strip = roundStrip(row, text);
      one.append(make("p", { class: "note" }, this.counts(row)), text);
      if (!row.sources) one.append(make("p", { class: "note" }, this.unknown(row)));
      if (strip) one.append(strip);
    }
    return one;
  }

  unknown(row) {
    const shares = Object.entries(row.written ?? {}).map(([source, count]) => `${count} ${source}`);
    const why = row.seconds ? "the rows of this arm have no trace" : "only timed examples have a trace, this one was only judged";
    return `Written by: ${shares.join(", ") || "not known"}; not known token by token: ${why}.`;
  }

  counts(row) {
    const told = [`${row.tokens} tokens, ended by ${row.end}`];
    if (row.drafted) told.push(`${row.rounds} rounds: ${row.drafted} drafted, ${row.judged} judged, ${row.rejected} rejected`);
    for (const [name, score] of Object.entries(row.scores ?? {})) told.push(`${name} ${number(score, 3)}`);
    told.push(row.seconds ? `${number(row.clocked / row.seconds, 0)} tokens/s` : "judged, not timed");
    if (row.differs) told.push(`${row.differs.length} tokens not the target's choice`);
    if (row.truncated) told.push(`prompt lost ${row.truncated} tokens`);
    return told.join("; ");
  }

  overview(table, example) {
    const titles = ["arm", "text", "quality", "tokens", "rounds", "rejected", "tokens/s", "not the target's"];
    const head = make("thead", {}, make("tr", {}, ...titles.map((title) => make("th", { scope: "col" }, title))));
    const body = make("tbody");
    const seen = new Map();
    for (const row of example.rows) {
      const arm = this.content.arms[row.arm];
      const cells = row.error === undefined ? this.cells(row, arm, seen) : [`failed: ${row.error}`];
      const line = make("tr", { "data-arm": arm }, make("th", { scope: "row" }, make("bdi", {}, arm)));
      cells.forEach((text) => line.append(make("td", { class: cells.length === 1 ? "error" : null }, text)));
      if (cells.length === 1) line.lastChild.colSpan = titles.length - 1;
      body.append(line);
    }
    table.replaceChildren(make("caption", { class: "hidden-text" }, "All arms on this example"), head, body);
    this.section.dispatchEvent(new Event("shown"));
  }

  cells(row, arm, seen) {
    if (!seen.has(row.text)) seen.set(row.text, arm);
    const first = seen.get(row.text);
    return [
      first === arm ? "its own" : `as ${first}`,
      number(row.quality, 3),
      String(row.tokens),
      String(row.rounds),
      row.judged ? `${row.rejected} of ${row.judged}` : "\u2013",
      row.seconds ? number(row.clocked / row.seconds, 0) : "\u2013",
      row.differs ? String(row.differs.length) : "\u2013",
    ];
  }
}
