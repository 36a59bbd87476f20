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

let source = null; // the equation or line whose numbers are lit
let lit = [];
let waiting; // a mouse on its way to the code crosses equations: the panel moves only for one on which it rests

function light(element, patience = 0) {
  if (element === source) return;
  source = element;
  for (const old of lit) old.classList.remove("lit");
  lit = element ? bearers(numbersOf(element)) : [];
  for (const fresh of lit) fresh.classList.add("lit");
  clearTimeout(waiting);
  if (!element?.classList.contains("equation")) return;
  const rows = lit.filter((one) => one.classList.contains("row"));
  if (patience) waiting = setTimeout(reveal, patience, rows);
  else reveal(rows);
}

// Scroll the panel, never the page, until the lines stand in that part of it which the window shows.
function reveal(rows) {
  const body = document.querySelector(".panel__body");
  if (!body || rows.length === 0) return;
  const frame = body.getBoundingClientRect();
  const ceiling = Math.max(frame.top, document.querySelector(".md-header")?.getBoundingClientRect().bottom ?? 0);
  const floor = Math.min(frame.bottom, innerHeight);
  const top = rows[0].getBoundingClientRect().top;
  const bottom = rows.at(-1).getBoundingClientRect().bottom;
  if (floor <= ceiling || (top >= ceiling && bottom <= floor)) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  // One number may stand far apart, in a branch and its twin: then the first line comes into view.
  const middle = bottom - top < floor - ceiling ? (top + bottom) / 2 : top + (floor - ceiling) / 3;
  body.scrollBy({ top: middle - (ceiling + floor) / 2, behavior: calm ? "instant" : "smooth" });
}

const bearerAt = (node) => node instanceof Element ? node.closest(".equation[data-eq], .panel .row[data-eq]") : null;

// What is pointed at wins; where nothing is, what has the focus keeps its light.
function followReader() {
  const focused = () => bearerAt(document.activeElement);
  document.addEventListener("mouseover", (event) => light(bearerAt(event.target) ?? focused(), 150));
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

// A long module opens at the function that the page derives, when its first numbered line would be out of view.
function openAtConcept() {
  const body = document.querySelector(".panel__body");
  const first = body?.querySelector(".row[data-eq]");
  const concept = [...(body?.querySelectorAll(".fold__label") ?? [])].find((label) => label.textContent === "label")?.closest(".row");
  if (!first || !concept || body.scrollHeight <= body.clientHeight) return;
  const top = body.getBoundingClientRect().top;
  if (first.getBoundingClientRect().bottom - top > body.clientHeight) body.scrollTop = concept.getBoundingClientRect().top - top;
}

renderFormulas();
openAtConcept();
followReader();
lightAddress();
