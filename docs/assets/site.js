// Formulas, the thread between a formula and its lines of code, and ways into the code and back. The pages are complete
// without this file, except formulas.
"use strict";

const SETTINGS = { throwOnError: false, strict: "ignore", trust: false };

function renderFormulas() {
  for (const element of document.querySelectorAll(".arithmatex")) {
    const [, open, tex] = element.textContent.trim().match(/^(\\\(|\\\[)([^]*)\\[)\]]$/) ?? [];
    if (tex !== undefined) katex.render(tex, element, { ...SETTINGS, displayMode: open === "\\[" });
  }
}

// A formula that is a little too long for a phone is set smaller; a longer one scrolls, its number in sight.
const SMALLEST = 0.72;

function fitFormulas() {
  const formulas = [...document.querySelectorAll("div.arithmatex")];
  for (const formula of formulas) if (formula.style.fontSize) formula.style.fontSize = "";
  const shares = formulas.map((formula) => formula.clientWidth / formula.scrollWidth); // all are measured before one is changed: one layout
  formulas.forEach((formula, i) => {
    if (shares[i] < 1) formula.style.fontSize = `${100 * Math.max(shares[i] - 0.01, SMALLEST)}%`;
  });
}

const panel = document.querySelector(".panel");
const addressed = (link) => document.getElementById(link.hash.slice(1));
const shown = (element) => element.checkVisibility(); // neither in another form nor in a fold
const isBeside = () => getComputedStyle(panel).position === "sticky"; // on a phone the code follows the text
const numbersOf = (element) => element.dataset.eq.split(" ");

// Every equation and every line that bears one of the numbers.
const bearers = (numbers) =>
  [...(source.closest(".book__page") ?? document).querySelectorAll(".equation[data-eq], .panel .row[data-eq]")].filter((element) =>
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
  if (patience) waiting = setTimeout(reveal, patience, litRows());
  else reveal(litRows());
}

const litRows = () => lit.filter((one) => one.classList.contains("row") && shown(one));

// Scroll the panel, never the page, until the lines stand in that part of it which the window shows.
function reveal(rows) {
  if (rows.length === 0 || !isBeside()) return;
  const body = rows[0].closest(".panel__body");
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
  addEventListener("hashchange", followAddress);
}

// A link to an equation or a line lights it; one to a line opens the form and the fold that hide it.
function followAddress() {
  const target = addressed(location);
  if (!target) return;
  unfold(target);
  if (panel?.contains(target) && target !== panel) reveal([target]);
  const bearer = bearerAt(target);
  if (bearer) light(bearer);
}

function unfold(element) {
  for (let fold = element.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  const pick = element.closest(".panel__form")?.previousElementSibling?.control;
  if (pick) pick.checked = true;
}

// A long module opens at the first numbered line of the function that the page derives, its head above where both fit.
function openAtFirstNumber(body) {
  const [head, first] = [body.dataset.head, body.dataset.first].map((id) => document.getElementById(id));
  if (!first || body.scrollHeight <= body.clientHeight) return;
  const depth = (row) => row.getBoundingClientRect().top - body.getBoundingClientRect().top + body.scrollTop;
  body.scrollTop = Math.max(shown(head) ? depth(head) : 0, depth(first) - body.clientHeight / 3);
}

function openForms() {
  for (const body of document.querySelectorAll(".panel__body")) {
    const pick = body.parentElement.previousElementSibling?.control;
    if (shown(body)) openAtFirstNumber(body);
    else pick.addEventListener("change", () => openAtFirstNumber(body), { once: true });
  }
}

let place = 0; // where the reader was before the code

// Beside the text, a link to a line moves the panel alone. Below it, the page moves, and the way back is remembered.
function followLinks() {
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.('a[href^="#"]');
    const target = link && addressed(link);
    if (!target || !panel?.contains(target)) return;
    place = scrollY;
    unfold(target);
    if (target === panel || !isBeside()) return;
    event.preventDefault();
    reveal([target]);
  });
}

// On a phone one button leads to the code, at the lines that are lit, and back to the place in the text.
function jumpToCodeAndBack() {
  const button = document.querySelector(".jump");
  if (!button) return;
  let there = false;
  new IntersectionObserver(([seen]) => {
    there = seen.isIntersecting;
    button.textContent = there ? "Text" : "Code";
  }, { rootMargin: "-50% 0px" }).observe(panel);
  button.addEventListener("mousedown", (event) => event.preventDefault()); // the touched equation keeps the focus and its light
  button.addEventListener("click", (event) => {
    event.preventDefault();
    event.stopPropagation();
    if (there) return scrollTo({ top: place, behavior: "instant" });
    place = scrollY;
    const body = [...document.querySelectorAll(".panel__body")].find(shown);
    const row = litRows()[0] ?? document.getElementById(body.dataset.first) ?? panel;
    row.scrollIntoView({ block: "center", behavior: "instant" });
  });
}

renderFormulas();
fitFormulas();
addEventListener("resize", fitFormulas);
document.fonts?.ready.then(fitFormulas);
openForms();
followReader();
followLinks();
jumpToCodeAndBack();
followAddress();
