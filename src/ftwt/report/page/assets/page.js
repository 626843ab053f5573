"use strict";
// The page: unpacks what is inside it, draws the figures, gives their data, keeps the theme.

const ftwt = {};
window.ftwt = ftwt;
const root = document.documentElement;
root.classList.add("js");

ftwt.byId = (id) => document.getElementById(id);

// An element; children are nodes or text, so that names from files stay text.
ftwt.make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
};

ftwt.bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

async function unpack(id) {
  const packed = new Blob([ftwt.bytes(ftwt.byId(id).textContent.trim())]);
  return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

// --- Numbers ------------------------------------------------------------------------------------

ftwt.percent = (share, digits = 1) => (100 * share).toFixed(digits) + "%";
ftwt.macs = (count) => {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (count >= size) return (count / size).toFixed(count / size < 100 ? 2 : 1) + " " + unit;
  }
  return String(Math.round(count));
};

// --- Theme --------------------------------------------------------------------------------------

const prefersDark = window.matchMedia("(prefers-color-scheme: dark)");
const remembered = { // a page from disk may have no storage
  get() { try { return localStorage.getItem("ftwt-theme"); } catch { return null; } },
  set(theme) { try { localStorage.setItem("ftwt-theme", theme); } catch { /* not kept */ } },
};

ftwt.isDark = () => (root.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
ftwt.colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
ftwt.onTheme = [];

function themed() {
  const button = ftwt.byId("theme");
  button.textContent = ftwt.isDark() ? "Light" : "Dark";
  button.setAttribute("aria-label", ftwt.isDark() ? "Use light colours" : "Use dark colours");
  ftwt.onTheme.forEach((act) => act());
}

function theme() {
  const kept = remembered.get();
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  ftwt.byId("theme").addEventListener("click", () => {
    root.dataset.theme = ftwt.isDark() ? "light" : "dark";
    remembered.set(root.dataset.theme);
    themed();
  });
  prefersDark.addEventListener("change", themed);
  themed();
}

// --- Data ---------------------------------------------------------------------------------------

ftwt.csv = ({ columns, rows }) => {
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
};

ftwt.json = ({ columns, rows }) => JSON.stringify(
  rows.map((row) => Object.fromEntries(row.map((value, i) => [columns[i], value]))), null, 1,
) + "\n";

ftwt.download = (name, kind, table) => {
  const text = kind === "csv" ? ftwt.csv(table) : ftwt.json(table);
  const type = kind === "csv" ? "text/csv" : "application/json";
  const address = URL.createObjectURL(new Blob([text], { type }));
  const link = ftwt.make("a", { href: address, download: `${name}.${kind}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
};

const MOST_ROWS = 300; // of a table that is shown; the files hold all

function table({ columns, rows }) {
  const cell = (value) => {
    const number = typeof value === "number";
    const text = value === null || value === undefined ? "" : number ? Number(value.toPrecision(6)) : value;
    return ftwt.make("td", number ? { class: "number" } : {}, String(text));
  };
  const head = ftwt.make("tr", {}, ...columns.map((name) => ftwt.make("th", { scope: "col" }, name)));
  const body = rows.slice(0, MOST_ROWS).map((row) => ftwt.make("tr", {}, ...row.map(cell)));
  const whole = ftwt.make("table", {}, ftwt.make("thead", {}, head), ftwt.make("tbody", {}, ...body));
  const box = ftwt.make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Data" }, whole);
  if (rows.length > MOST_ROWS) box.append(`The first ${MOST_ROWS} of ${rows.length} rows; the files hold all.`);
  return box;
}

function tools(figures) {
  const known = new Map(figures.map((figure) => [figure.id, figure]));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-figure]");
    if (!button) return;
    const figure = known.get(button.dataset.figure);
    if (button.dataset.kind !== "table") {
      ftwt.download(figure.id, button.dataset.kind, figure.data);
      return;
    }
    const place = ftwt.byId("table-" + figure.id);
    if (!place.firstChild) place.append(table(figure.data));
    place.hidden = !place.hidden;
    button.setAttribute("aria-expanded", String(!place.hidden));
  });
}

// --- Start --------------------------------------------------------------------------------------

async function start() {
  theme();
  const data = JSON.parse(await unpack("data"));
  ftwt.data = data;
  tools(data.tables);
  if (data.explorer.length) ftwt.explore(data.explorer);
  root.dataset.ready = "yes";
}

document.addEventListener("DOMContentLoaded", () => start().catch((error) => {
  ftwt.byId("trouble").hidden = false;
  throw error;
}));
