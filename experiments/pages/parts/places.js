// One place at a time: the mean over the tasks, or a task.
function startPlaces(comparison) {
  const places = [...comparison.querySelectorAll(":scope > .place")];
  const buttons = [...comparison.querySelectorAll(".places button")];
  const show = (anchor) => {
    for (const place of places) place.hidden = place.id !== anchor;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.place === anchor));
  };
  for (const button of buttons) button.addEventListener("click", () => show(button.dataset.place));
  if (buttons.length) show(places[0].id);
}

function startIntervals(comparison) {
  const box = comparison.querySelector(".intervals");
  const update = () => comparison.classList.toggle("no-intervals", !box.checked);
  box.addEventListener("change", update);
  update();
}

// What a point says, below the chart: for fingers and keys, which see no tooltip.
function startReadout(figure) {
  const readout = figure.querySelector(".readout");
  readout.hidden = false;
  for (const spot of figure.querySelectorAll(".spot")) {
    const tell = () => (readout.textContent = spot.getAttribute("aria-label"));
    for (const event of ["focus", "pointerenter", "click"]) spot.addEventListener(event, tell);
  }
}
