// An answer as elements: each run of tokens of one source, round and mark is one span.
const SOURCES = { d: "draft", s: "slim", t: "target" };

function roundOfToken(row) {
  const rounds = [];
  (row.trace ?? []).forEach((entry, round) => rounds.push(...Array(entry[6].length).fill(round)));
  return rounds;
}

function tokensOf(row, pieces) {
  const rounds = roundOfToken(row);
  const differs = new Set(row.differs ?? []);
  return pieces.map((text, place) => ({
    text,
    source: row.sources?.[place] ?? null,
    round: row.sources && rounds.length ? rounds[place] : null,
    differs: differs.has(place),
  }));
}

// Where two texts part: the place in characters, null where they are the same.
function partAt(one, other) {
  if (one === other) return null;
  let place = 0;
  while (place < one.length && one[place] === other[place]) place += 1;
  return place;
}

function sameLook(one, other) {
  return one && one.source === other.source && one.round === other.round && !one.differs && !other.differs && !other.parts;
}

function groupTokens(tokens, parting) {
  const groups = [];
  let start = 0;
  let parted = parting === null;
  for (const token of tokens) {
    if (token.text === "") continue;
    const parts = !parted && parting < start + token.text.length;
    parted ||= parts;
    start += token.text.length;
    const last = groups.at(-1);
    if (!parts && sameLook(last, token) && !last.parts) last.text += token.text;
    else groups.push({ ...token, parts });
  }
  if (!parted) groups.push({ text: "", source: null, round: null, differs: false, parts: true }); // it ends earlier
  return groups;
}

function answerText(row, pieces, parting, bracketed) {
  const whole = make("div", { class: "answer", dir: "auto" });
  let before = null;
  for (const group of groupTokens(tokensOf(row, pieces), parting)) {
    const look = [];
    if (group.source) look.push("from", SOURCES[group.source] ?? "");
    if (group.differs && pieces.length > 1) look.push("differs");
    if (group.parts) look.push("parts");
    const changed = group.source && group.source !== before;
    if (bracketed && changed) whole.append(make("span", { class: "bracket" }, `[${SOURCES[group.source] ?? group.source}]`));
    before = group.source ?? before;
    whole.append(make("span", { class: look.join(" ") || null, "data-round": group.round }, group.text));
  }
  return whole;
}

const ROUND = { drafted: 0, judged: 1, rejected: 2, committed: 3, pending: 4, tiers: 5, sources: 6, escalation: 7 };

function roundTold(entry, place) {
  const told = [`round ${place + 1}: ${entry[ROUND.drafted]} drafted, ${entry[ROUND.judged]} judged`];
  told.push(`${entry[ROUND.rejected]} rejected, ${entry[ROUND.committed]} committed`);
  if (entry[ROUND.pending]) told.push(`${entry[ROUND.pending]} pending`);
  if (entry[ROUND.escalation]) told.push(`target called by ${entry[ROUND.escalation]}`);
  const named = [...entry[ROUND.sources]].map((letter) => SOURCES[letter] ?? letter);
  if (named.length) told.push(`written by ${named.join(" ")}`);
  return told.join(", ");
}

function roundStrip(row, answer) {
  if (!row.trace) return null;
  const strip = make("ol", { class: "rounds", "aria-label": "Rounds" });
  row.trace.forEach((entry, place) => {
    const told = roundTold(entry, place);
    const item = make("li", { title: told }, make("span", { class: "hidden-text" }, told));
    for (const run of entry[ROUND.sources].match(/(.)\1*/g) ?? []) {
      item.append(make("span", { class: `from ${SOURCES[run[0]] ?? ""}`, "aria-hidden": "true" }, run));
    }
    if (entry[ROUND.rejected]) item.append(make("span", { class: "less", "aria-hidden": "true" }, `\u2212${entry[ROUND.rejected]}`));
    if (entry[ROUND.escalation]) item.append(make("span", { class: "called", "aria-hidden": "true" }, "\u2191"));
    const light = (on) => {
      for (const span of answer.querySelectorAll(`[data-round="${place}"]`)) span.classList.toggle("lit", on);
    };
    item.addEventListener("pointerenter", () => light(true));
    item.addEventListener("pointerleave", () => light(false));
    strip.append(item);
  });
  return strip;
}
