// Formulas, and the thread between a formula and its lines of code. The pages are complete without this file, except formulas.
"use strict";

const SETTINGS = { throwOnError: false, strict: "ignore", trust: false };

function renderFormulas() {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const [, open, tex] = element.textContent.trim().match(/^(\\\(|\\\[)([^]*)\\[)\]]$/) ?? [];
    if (tex !== undefined) katex.render(tex, element, { ...SETTINGS, displayMode: open === "\\[" });
  }
}

const numbersOf = (element) => element.dataset.eq.split(" ");

// Every equation and every line that bears one of the numbers.
const bearers = (numbers) =>
  [...document.querySelectorAll(".equation[data-eq], .panel .row[data-eq]")].filter((element) =>
    numbersOf(element).some((number) => numbers.includes(number)));

let lit = [];

function light(element) {
  for (const old of lit) old.classList.remove("lit");
  lit = element ? bearers(numbersOf(element)) : [];
  for (const fresh of lit) fresh.classList.add("lit");
  if (element?.classList.contains("equation")) reveal(lit.filter((one) => one.classList.contains("row")));
}

// Scroll the panel, never the page, until the lines are in view.
function reveal(rows) {
  const body = document.querySelector(".panel__body");
  if (!body || rows.length === 0) return;
  const view = body.getBoundingClientRect();
  const top = rows[0].getBoundingClientRect().top - view.top;
  const bottom = rows.at(-1).getBoundingClientRect().bottom - view.top;
  if (top >= 0 && bottom <= body.clientHeight) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  body.scrollBy({ top: (top + bottom - body.clientHeight) / 2, behavior: calm ? "instant" : "smooth" });
}

const bearerAt = (node) => node instanceof Element ? node.closest(".equation[data-eq], .panel .row[data-eq]") : null;

// What is pointed at wins; where nothing is, what has the focus keeps its light.
function followReader() {
  const focused = () => bearerAt(document.activeElement);
  document.addEventListener("mouseover", (event) => {
    const target = bearerAt(event.target) ?? focused();
    if (!target || !target.classList.contains("lit") || bearerAt(event.target)) light(target);
  });
  document.addEventListener("focusin", (event) => light(bearerAt(event.target)));
  document.addEventListener("focusout", () => light(null));
  document.documentElement.addEventListener("mouseleave", () => light(focused()));
  addEventListener("hashchange", lightAddress);
}

// A link to an equation or a line lights it.
function lightAddress() {
  const target = bearerAt(document.getElementById(location.hash.slice(1)));
  if (target) light(target);
}

renderFormulas();
followReader();
lightAddress();
