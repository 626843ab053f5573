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

// --- Figures ------------------------------------------------------------------------------------

// A colour written "@name" is the page's own, which the theme decides.
function coloured(value) {
  if (typeof value === "string" && value.startsWith("@")) return ftwt.colour(value.slice(1));
  if (Array.isArray(value)) return value.map(coloured);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, held]) => [key, coloured(held)]));
  }
  return value;
}

function layoutOf(figure) {
  const layout = coloured(figure.layout);
  const narrow = ftwt.byId("plot-" + figure.id).clientWidth < 480;
  const ink = ftwt.colour("ink"), soft = ftwt.colour("soft"), grid = ftwt.colour("grid");
  for (const name of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
    layout[name] = {
      gridcolor: grid, zerolinecolor: ftwt.colour("line"), linecolor: ftwt.colour("line"),
      tickcolor: ftwt.colour("line"), automargin: true, ...layout[name],
      title: { font: { color: soft, size: 12.5 }, standoff: 8, ...layout[name].title },
    };
  }
  return {
    ...layout,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
    margin: { l: 48, r: 8, t: 12, b: 40, ...layout.margin },
    hoverlabel: { bgcolor: ink, bordercolor: ink, font: { color: ftwt.colour("ground") }, align: "left", namelength: -1 },
    ...(layout.showlegend === false ? {} : { legend: {
      orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: soft }, ...layout.legend,
    } }),
    dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom",
    height: layout.height + (narrow ? 16 * Math.min(figure.traces.length - 1, 6) : 0), // for the legend
    autosize: true,
  };
}

const BAR = {
  displaylogo: false, responsive: true, displayModeBar: false, doubleClick: "reset", scrollZoom: false,
};

async function draw(figures) {
  for (const figure of figures) {
    await window.Plotly.newPlot("plot-" + figure.id, coloured(figure.traces), layoutOf(figure), BAR);
  }
  ftwt.onTheme.push(() => {
    for (const figure of figures) {
      window.Plotly.react("plot-" + figure.id, coloured(figure.traces), layoutOf(figure), BAR);
    }
  });
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
  tools([...data.figures, ...data.pictures]);
  if (data.explorer.length) ftwt.explore(data.explorer);
  if (data.figures.length) {
    const library = document.createElement("script");
    library.textContent = await unpack("library");
    document.head.append(library);
    await draw(data.figures);
  }
  root.dataset.ready = "yes";
}

document.addEventListener("DOMContentLoaded", () => start().catch((error) => {
  ftwt.byId("trouble").hidden = false;
  throw error;
}));
