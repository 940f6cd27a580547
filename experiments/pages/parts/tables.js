// Sorting: a button in each header. Numbers start with the largest, names with the first; what has no number comes last.
function sortKey(row, place) {
  const cell = row.cells[place];
  if (place === 0) return cell.textContent.trim();
  return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
}

function compareKeys(one, other, sign) {
  if (one === null || other === null) return (one === null) - (other === null);
  return sign * (typeof one === "string" ? one.localeCompare(other, "en", { numeric: true }) : one - other);
}

function sortTable(table, place) {
  const headers = [...table.tHead.rows[0].cells];
  const before = headers[place].getAttribute("aria-sort");
  const first = place === 0 ? "ascending" : "descending";
  const order = before === first ? (first === "ascending" ? "descending" : "ascending") : first;
  headers.forEach((header, at) => header.setAttribute("aria-sort", at === place ? order : "none"));
  const rows = [...table.tBodies[0].rows];
  const sign = order === "ascending" ? 1 : -1;
  rows.sort((one, other) => compareKeys(sortKey(one, place), sortKey(other, place), sign));
  table.tBodies[0].append(...rows);
  say(`Sorted by ${headers[place].textContent.trim()}, ${order}.`);
}

function startSorting(table) {
  [...table.tHead.rows[0].cells].forEach((header, place) => {
    const button = make("button", { type: "button" }, header.textContent);
    header.replaceChildren(button);
    header.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sortTable(table, place));
  });
}

// The filter of arms acts on all tables and charts of its comparison.
function showArms(comparison, shown) {
  for (const element of comparison.querySelectorAll("[data-arm]")) {
    const off = !shown.has(element.dataset.arm);
    if (element instanceof SVGElement) element.style.display = off ? "none" : "";
    else element.hidden = off;
  }
}

function startArms(comparison) {
  const boxes = [...comparison.querySelectorAll(".arms input[type=checkbox]")];
  const text = comparison.querySelector(".arm-text");
  const told = comparison.querySelector(".arms output");
  const update = () => {
    const sought = text.value.trim().toLowerCase();
    for (const box of boxes) box.closest("li").hidden = !box.value.toLowerCase().includes(sought);
    const shown = boxes.filter((box) => box.checked && !box.closest("li").hidden).map((box) => box.value);
    told.textContent = shown.length === boxes.length ? `all ${boxes.length}` : `${shown.length} of ${boxes.length}`;
    showArms(comparison, new Set(shown));
  };
  const set = (checked) => {
    for (const box of boxes) if (!box.closest("li").hidden) box.checked = checked;
    update();
  };
  comparison.querySelector(".arms").addEventListener("input", update);
  comparison.querySelector(".arm-all").addEventListener("click", () => set(true));
  comparison.querySelector(".arm-none").addEventListener("click", () => set(false));
  update(); // a browser may remember boxes when a page is loaded again
}
