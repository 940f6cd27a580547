function start() {
  startTheme();
  const answers = JSON.parse(document.getElementById("answers").textContent);
  document.querySelectorAll("table.sortable").forEach(startSorting);
  document.querySelectorAll("figure.frontier").forEach(startReadout);
  for (const comparison of document.querySelectorAll(".comparison")) {
    comparison.querySelector(".tools").hidden = false;
    startPlaces(comparison);
    startIntervals(comparison);
    const section = comparison.querySelector(".examples");
    new Examples(section, answers.comparisons[section.dataset.comparison], answers.texts);
    startArms(comparison);
    section.addEventListener("shown", () => comparison.querySelector(".arms").dispatchEvent(new Event("input")));
  }
}

start();
