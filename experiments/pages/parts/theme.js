"use strict";

// Elements are made with textContent alone: what a model wrote is never read as HTML.
function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function say(text) {
  document.getElementById("said").textContent = text;
}

const THEMES = ["system", "light", "dark"];

function storedTheme() {
  try {
    return localStorage.getItem("viasd-theme");
  } catch {
    return null; // a browser that stores nothing for files
  }
}

function showTheme(theme) {
  const known = THEMES.includes(theme) ? theme : "system";
  document.documentElement.dataset.theme = known;
  document.getElementById("theme").textContent = `Theme: ${known}`;
  return known;
}

function startTheme() {
  const button = document.getElementById("theme");
  let theme = showTheme(storedTheme());
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = showTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
    try {
      localStorage.setItem("viasd-theme", theme);
    } catch {
      // it holds until the page is closed
    }
  });
}
