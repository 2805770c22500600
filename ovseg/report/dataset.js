const samples = JSON.parse(document.getElementById("samples").textContent);
const cards = [...document.querySelectorAll("#cards > .card")];
const form = document.getElementById("filters");
const dialog = document.getElementById("large");
const fields = ["class", "verdict", "least", "most"];
const usual = Object.fromEntries(fields.map((name) => [name, form.elements[name].value]));

function matches(sample, wanted) {
  const [least, most] = [Number(wanted.least), Number(wanted.most)];
  const anyScore = wanted.least === usual.least && wanted.most === usual.most;
  const inRange = (score) => score !== null && score >= least && score <= most;
  const entities = sample.entities.filter(([key]) => !wanted.class || key === wanted.class);
  return (!wanted.verdict || sample.verdicts.includes(wanted.verdict)) &&
    (!wanted.class || entities.length > 0) &&
    (anyScore || entities.some(([, score]) => inRange(score)));
}

function show() {
  const wanted = Object.fromEntries(fields.map((name) => [name, form.elements[name].value]));
  cards.forEach((card, place) => { card.hidden = !matches(samples[place], wanted); });
  const count = cards.filter((card) => !card.hidden).length;
  document.getElementById("count").textContent = `${count} of ${cards.length} shown`;
  document.getElementById("absent").textContent = absent(wanted);
  return wanted;
}

// says what is asked for and no sample of the gallery has
function absent(wanted) {
  const keys = samples.flatMap((sample) => sample.entities.map(([key]) => key));
  const there = { class: keys, verdict: samples.flatMap((sample) => sample.verdicts) };
  const missing = Object.keys(there).filter((name) => wanted[name] && !there[name].includes(wanted[name]));
  return missing.map((name) => `No sample of the ${name} “${wanted[name]}” was drawn.`).join(" ");
}

// a select takes only what it offers, and would show everything instead
function choose(name, value) {
  const field = form.elements[name];
  if (field.options && ![...field.options].some((option) => option.value === value)) {
    field.add(new Option(value, value));
  }
  field.value = value;
}

// the address holds the filters: a link such as #class=cat&verdict=kept sets them
function remember() {
  const changed = Object.entries(show()).filter(([name, value]) => value !== usual[name]);
  history.replaceState(null, "", `#${new URLSearchParams(changed)}`);
}

function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  fields.forEach((name) => choose(name, given.get(name) ?? usual[name]));
  show();
}

function enlarge(card) {
  const copy = card.cloneNode(true);
  copy.querySelector("button").replaceWith(copy.querySelector(".stack"));
  dialog.querySelector("div").replaceChildren(copy);
  dialog.showModal();
}

form.addEventListener("input", remember);
form.addEventListener("reset", () => setTimeout(remember));
form.addEventListener("submit", (event) => event.preventDefault());
document.querySelectorAll(".card > button").forEach((button) => {
  button.addEventListener("click", () => enlarge(button.parentElement));
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
window.addEventListener("hashchange", () => {
  recall();
  if (location.hash.includes("=")) document.getElementById("gallery").scrollIntoView();
});
recall();
