"use strict";
// The explorer: an image, the filters that fire for it, and how its route differs from another's.

ftwt.explore = (recordings) => {
  const { byId, make, percent, macs } = ftwt;
  const state = { run: 0, a: 0, b: null, next: "a", order: "cheapest", sorted: false };
  const rows = []; // one for each unit: canvas, place of its cursor
  let seen, order; // the recording that is shown, unpacked; each unit's filters as they are drawn

  // --- What is recorded -------------------------------------------------------------------------

  function unpacked(recording) {
    if (!recording.bits) {
      const bytes = ftwt.bytes(recording.masks);
      const wide = recording.units.reduce((sum, unit) => sum + Math.ceil(unit.channels / 8), 0);
      recording.bits = (image, from, filter) =>
        (bytes[image * wide + from + (filter >> 3)] >> (7 - (filter & 7))) & 1;
      let from = 0;
      for (const unit of recording.units) {
        unit.from = from;
        from += Math.ceil(unit.channels / 8);
      }
      recording.heat = ftwt.bytes(recording.heatmaps.values);
    }
    return recording;
  }

  const fires = (image, unit, filter) => seen.bits(image, unit.from, filter);
  const labelOf = (image) => seen.classes[image.label];

  // Filters that fire for both images, only A, only B; without B, `a` alone counts.
  function compared(unit) {
    const found = { both: 0, a: 0, b: 0 };
    for (let filter = 0; filter < unit.channels; filter++) {
      const inA = fires(state.a, unit, filter);
      const inB = state.b !== null && fires(state.b, unit, filter);
      if (inA && inB) found.both++;
      else if (inA) found.a++;
      else if (inB) found.b++;
    }
    const any = found.both + found.a + found.b;
    found.jaccard = any ? found.both / any : 1;
    return found;
  }

  // --- The address keeps the selection ----------------------------------------------------------

  function keep() {
    const parts = [`run=${state.run}`, `a=${seen.shown[state.a].index}`];
    if (state.b !== null) parts.push(`b=${seen.shown[state.b].index}`);
    try {
      history.replaceState(null, "", "#explorer&" + parts.join("&"));
    } catch { /* some browsers leave the address of a file alone */ }
  }

  function recall() {
    const given = new Map(location.hash.slice(1).split("&").map((part) => part.split("=")));
    if (!given.has("a")) return false;
    const run = Number(given.get("run"));
    if (recordings[run]) state.run = run;
    seen = unpacked(recordings[state.run]);
    const place = (name) => seen.shown.findIndex((image) => String(image.index) === given.get(name));
    state.a = Math.max(place("a"), 0);
    state.b = given.has("b") && place("b") >= 0 ? place("b") : null;
    return true;
  }

  // --- Pictures ---------------------------------------------------------------------------------

  function listed() {
    const places = seen.shown.map((_, place) => place);
    const cost = (place) => seen.shown[place].macs;
    if (state.order.startsWith("class ")) {
      const wanted = Number(state.order.slice(6));
      return places.filter((p) => seen.shown[p].label === wanted).sort((p, q) => cost(p) - cost(q));
    }
    if (state.order === "class") {
      return places.sort((p, q) => seen.shown[p].label - seen.shown[q].label || cost(p) - cost(q));
    }
    const sign = state.order === "dearest" ? -1 : 1;
    return places.sort((p, q) => sign * (cost(p) - cost(q)));
  }

  function picture(place, text) {
    const sharp = seen.side <= 64 ? "pixels" : null;
    return make("img", { src: seen.pictures[place], alt: text, class: sharp, draggable: "false" });
  }

  function fillPicks() {
    const picks = byId("picks");
    picks.replaceChildren(...listed().map((place, number) => {
      const image = seen.shown[place];
      const spoken = `${labelOf(image)}, image ${image.index}, ${macs(image.macs)} MACs`;
      const button = make("button", { type: "button", "data-place": place, "aria-label": spoken,
        title: spoken, tabindex: number ? "-1" : "0" }, picture(place, ""),
        make("span", {}, labelOf(image)), make("span", {}, macs(image.macs)));
      return make("li", {}, button);
    }));
    markPicks();
  }

  function markPicks() {
    for (const button of byId("picks").querySelectorAll("button")) {
      const place = Number(button.dataset.place);
      button.classList.toggle("is-a", place === state.a);
      button.classList.toggle("is-b", place === state.b);
      button.setAttribute("aria-pressed", String(place === state.a || place === state.b));
    }
    for (const name of ["a", "b"]) {
      byId("next-" + name).setAttribute("aria-pressed", String(state.next === name));
    }
    byId("clear-b").disabled = state.b === null;
  }

  function choose(place, which) {
    if (which === "b") state.b = place === state.b ? null : place;
    else state.a = place;
    show();
    keep();
  }

  // --- The chosen images ------------------------------------------------------------------------

  function card(which) {
    const place = state[which];
    const box = make("article", { class: "card " + which, id: "card-" + which });
    if (place === null) {
      box.append(make("div"), make("p", { class: "soft" },
        "No second image: choose B above to compare two routes."));
      return box;
    }
    const image = seen.shown[place];
    const right = image.label === image.prediction;
    const guess = `${seen.classes[image.prediction]} (${percent(image.confidence, 0)})${right ? "" : ", wrong"}`;
    const facts = [
      ["label", labelOf(image)], ["guess", guess], ["MACs", macs(image.macs)],
      ["saved", percent(1 - image.macs / seen.dense_macs)],
      ["rank", `dearer than ${percent(image.above)} of all`],
    ];
    const list = make("dl");
    for (const [name, value] of facts) list.append(make("dt", {}, name), make("dd", {}, value));
    const title = make("h3", {}, `${which.toUpperCase()}: image ${image.index}`);
    box.append(picture(place, `Image ${image.index}, ${labelOf(image)}`), make("div", {}, title, list));
    return box;
  }

  function together() {
    const box = make("article", { class: "card both", id: "card-both" }, make("h3", {}, "The two routes"));
    const sum = { both: 0, a: 0, b: 0 };
    for (const unit of seen.units) {
      const found = compared(unit);
      for (const name of Object.keys(sum)) sum[name] += found[name];
    }
    const all = seen.units.reduce((total, unit) => total + unit.channels, 0);
    const list = make("dl");
    const tell = (name, count) =>
      list.append(make("dt", {}, name), make("dd", {}, `${count.toLocaleString("en")} of ${all.toLocaleString("en")} filters`));
    if (state.b === null) {
      box.firstChild.textContent = "The route";
      tell("computed", sum.a);
      tell("left out", all - sum.a);
    } else {
      const any = sum.both + sum.a + sum.b;
      tell("both", sum.both);
      tell("only A", sum.a);
      tell("only B", sum.b);
      list.append(make("dt", {}, "Jaccard"), make("dd", { id: "jaccard" }, (any ? sum.both / any : 1).toFixed(3)));
    }
    box.append(list);
    return box;
  }

  // --- Routes: a cell for each filter -----------------------------------------------------------

  const STATES = { // how a cell is drawn, and what it means
    core: "computed for this image and for every other", here: "computed for this image",
    both: "computed for both", a: "computed for A only", b: "computed for B only",
    off: "not computed", never: "computed for no image",
  };

  function kindOf(unit, number, filter) {
    const inA = fires(state.a, unit, filter), count = seen.fired[number][filter];
    if (count === 0) return "never";
    if (state.b === null) return inA ? (count === seen.images ? "core" : "here") : "off";
    const inB = fires(state.b, unit, filter);
    return inA ? (inB ? "both" : "a") : inB ? "b" : "off";
  }

  // Shape says what colour says: a full square, a half of one, a dot, nothing.
  function cell(pen, kind, x, y, size, colours) {
    pen.fillStyle = colours[kind];
    if (kind === "a" || kind === "b") {
      pen.fillRect(x, y, size, size);
      pen.fillStyle = colours.ground;
      const dot = size * 0.36;
      if (kind === "b") pen.fillRect(x + (size - dot) / 2, y + (size - dot) / 2, dot, dot);
    } else if (kind === "off") {
      pen.fillRect(x + size * 0.32, y + size * 0.32, size * 0.36, size * 0.36);
    } else if (kind !== "never") {
      pen.fillRect(x, y, size, size);
    }
  }

  function colours() {
    const found = { ground: ftwt.colour("ground"), off: ftwt.colour("off"), never: ftwt.colour("ground") };
    for (const kind of ["core", "here", "both"]) found[kind] = ftwt.colour(kind);
    for (const kind of ["a", "b"]) found[kind] = ftwt.colour("only-" + kind);
    return found;
  }

  function paint(row, palette) {
    const { canvas, unit, number } = row;
    const width = canvas.parentElement.clientWidth, dense = window.devicePixelRatio || 1;
    const pitch = Math.min(Math.max(Math.floor(width / unit.channels), 8), 18);
    const across = Math.max(1, Math.floor(width / pitch));
    const height = Math.ceil(unit.channels / across) * pitch;
    Object.assign(row, { pitch, across });
    canvas.width = Math.round(width * dense);
    canvas.height = Math.round(height * dense);
    canvas.style.height = height + "px";
    const pen = canvas.getContext("2d");
    pen.scale(dense, dense);
    order[number].forEach((filter, place) => {
      const x = (place % across) * pitch, y = Math.floor(place / across) * pitch;
      cell(pen, kindOf(unit, number, filter), x, y, pitch - 2, palette);
    });
    if (row.cursor !== null) {
      pen.strokeStyle = ftwt.colour("ink");
      pen.lineWidth = 2;
      const x = (row.cursor % across) * pitch, y = Math.floor(row.cursor / across) * pitch;
      pen.strokeRect(x, y, pitch - 2, pitch - 2);
    }
  }

  function said(row, place) {
    const filter = order[row.number][place];
    const count = seen.fired[row.number][filter];
    const what = STATES[kindOf(row.unit, row.number, filter)];
    const often = `${percent(count / seen.images)} of ${seen.images.toLocaleString("en")} images`;
    return `${row.unit.name}, filter ${filter}: ${what}; fires for ${often}`;
  }

  const tip = make("div", { class: "tip", "aria-hidden": "true", hidden: true });
  document.body.append(tip);

  function point(text, x, y) {
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    tip.style.left = Math.max(8, Math.min(x + 12, room)) + "px";
    const below = y + 18 + tip.offsetHeight < window.innerHeight;
    tip.style.top = (below ? y + 18 : y - tip.offsetHeight - 10) + "px";
  }

  function move(row, place) {
    row.cursor = place;
    paint(row, colours());
    const { canvas, pitch, across } = row;
    if (place === null) {
      point("");
      return;
    }
    const text = said(row, place), box = canvas.getBoundingClientRect();
    canvas.setAttribute("aria-valuenow", order[row.number][place]);
    canvas.setAttribute("aria-valuetext", text);
    point(text, box.left + (place % across) * pitch, box.top + Math.floor(place / across) * pitch);
  }

  function listen(row) {
    const { canvas, unit } = row;
    canvas.addEventListener("pointermove", (event) => {
      const across = Math.floor(event.offsetX / row.pitch);
      const place = Math.floor(event.offsetY / row.pitch) * row.across + across;
      const inside = across < row.across && place >= 0 && place < unit.channels;
      point(inside ? said(row, place) : "", event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => point(""));
    canvas.addEventListener("focus", () => {
      if (canvas.matches(":focus-visible")) move(row, row.cursor ?? 0);
    });
    canvas.addEventListener("blur", () => move(row, null));
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row.across, ArrowUp: -row.across,
        Home: -Infinity, End: Infinity };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const wanted = (row.cursor ?? 0) + steps[event.key];
      move(row, Math.min(Math.max(wanted, 0), unit.channels - 1));
    });
  }

  function buildRows() {
    rows.length = 0;
    byId("routes").replaceChildren(...seen.units.map((unit, number) => {
      const numbers = make("span", { "data-unit": unit.name });
      const also = unit.inherited.length ? `, also masks ${unit.inherited.join(", ")}` : "";
      const about = `${percent(unit.share)} of the dense MACs${also}`;
      const canvas = make("canvas", { tabindex: "0", role: "slider", "aria-label": `filters of ${unit.name}`,
        "aria-valuemin": "0", "aria-valuemax": unit.channels - 1, "aria-valuenow": "0" });
      const row = { canvas, unit, number, numbers, cursor: null };
      rows.push(row);
      listen(row);
      return make("li", {}, make("div", { class: "unit" }, make("b", {}, unit.name),
        make("span", {}, about)), make("div", { class: "unit" }, numbers), make("div", {}, canvas));
    }));
  }

  function paintRows() {
    order = seen.units.map((unit, number) => {
      const filters = Array.from({ length: unit.channels }, (_, filter) => filter);
      const count = seen.fired[number];
      return state.sorted ? filters.sort((p, q) => count[q] - count[p] || p - q) : filters;
    });
    const palette = colours();
    for (const row of rows) {
      const found = compared(row.unit), all = row.unit.channels;
      const counts = state.b === null
        ? [`${found.a} of ${all} filters`, `${percent(found.a / all, 0)} computed`]
        : [`both ${found.both}, A ${found.a}, B ${found.b}`, `of ${all}, Jaccard ${found.jaccard.toFixed(2)}`];
      row.numbers.replaceChildren(...counts.map((text) => make("span", {}, text)));
      row.canvas.setAttribute("aria-valuetext", `${row.unit.name}: ${counts.join(", ")}`);
      paint(row, palette);
    }
  }

  function legend() {
    const shown = state.b === null
      ? ["core", "here", "off", "never"] : ["both", "a", "b", "off", "never"];
    const texts = { core: "computed for every image", here: "computed for this one", off: "not computed here",
      never: "never computed", both: "both", a: "only A", b: "only B" };
    const palette = colours();
    byId("legend").replaceChildren(...shown.map((kind) => {
      const mark = make("canvas", { width: 22, height: 22, "aria-hidden": "true", style: "width:11px;height:11px" });
      const pen = mark.getContext("2d");
      cell(pen, kind, 0, 0, 22, palette);
      if (kind === "never") {
        pen.strokeStyle = palette.off;
        pen.strokeRect(0.5, 0.5, 21, 21);
      }
      return make("li", {}, mark, texts[kind]);
    }));
  }

  // --- Heatmaps ---------------------------------------------------------------------------------

  const RAMP = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]]; // magma

  function heat(values, wide, high, text) {
    const canvas = make("canvas", { width: wide, height: high, role: "img", "aria-label": text });
    const pen = canvas.getContext("2d"), picture = pen.createImageData(wide, high);
    values.forEach((value, i) => {
      const at = (value / 255) * (RAMP.length - 1), low = Math.min(Math.floor(at), RAMP.length - 2);
      for (let c = 0; c < 3; c++) {
        picture.data[4 * i + c] = RAMP[low][c] + (at - low) * (RAMP[low + 1][c] - RAMP[low][c]);
      }
      picture.data[4 * i + 3] = 255;
    });
    pen.putImageData(picture, 0, 0);
    return canvas;
  }

  function heatmaps() {
    const maps = seen.heatmaps.units, place = state.a;
    byId("heatmaps").hidden = !maps.length;
    const index = seen.shown[place].index;
    byId("heatmaps-of").textContent = `image ${index}, ${labelOf(seen.shown[place])}`;
    byId("maps").replaceChildren(...maps.map(({ name, high, wide, from }) => {
      const size = high * wide, start = from + 2 * place * size;
      const part = (which) => heat(seen.heat.subarray(start + which * size, start + (which + 1) * size),
        wide, high, `${name}, image ${index}, ${which ? "with masks" : "dense"}`);
      const unit = seen.units.find((known) => known.name === name);
      const kept = unit ? compared(unit) : null;
      const cut = kept ? `${percent(1 - (kept.a + kept.both) / unit.channels, 0)} of its filters left out` : "";
      const under = make("div", { class: "under" }, make("span", {}, "input"), make("span", {}, "dense"),
        make("span", {}, "dynamic"));
      return make("li", {}, make("b", {}, name), make("div", { class: "trio" }, picture(place, ""), part(0), part(1)),
        under, cut);
    }));
  }

  // --- All of it --------------------------------------------------------------------------------

  function show() {
    markPicks();
    byId("chosen").replaceChildren(card("a"), card("b"), together());
    legend();
    paintRows();
    heatmaps();
    const b = state.b === null ? "" : ` and image ${seen.shown[state.b].index}`;
    byId("explorer-said").textContent = `Route of image ${seen.shown[state.a].index}${b}`;
  }

  function open() {
    seen = unpacked(recordings[state.run]);
    state.a = Math.min(state.a, seen.shown.length - 1);
    if (state.b !== null && state.b >= seen.shown.length) state.b = null;
    const known = [...new Set(seen.shown.map((image) => image.label))].sort((p, q) => p - q);
    byId("order").replaceChildren(
      make("option", { value: "cheapest" }, "cheapest first"),
      make("option", { value: "dearest" }, "dearest first"),
      make("option", { value: "class" }, "by class"),
      ...known.map((label) => make("option", { value: "class " + label }, "only " + seen.classes[label])),
    );
    if (![...byId("order").options].some((option) => option.value === state.order)) state.order = "cheapest";
    byId("order").value = state.order;
    byId("run").value = String(state.run);
    buildRows();
    fillPicks();
    show();
  }

  function data() {
    const columns = ["unit", "filter", "image_a", "fires_a", "image_b", "fires_b", "firing_rate"];
    const b = state.b, found = [];
    seen.units.forEach((unit, number) => {
      for (let filter = 0; filter < unit.channels; filter++) {
        found.push([unit.name, filter, seen.shown[state.a].index, fires(state.a, unit, filter),
          b === null ? null : seen.shown[b].index, b === null ? null : fires(b, unit, filter),
          seen.fired[number][filter] / seen.images]);
      }
    });
    return { columns, rows: found };
  }

  function heatmapData() {
    const image = seen.shown[state.a].index, found = [];
    for (const { name, high, wide, from, highest } of seen.heatmaps.units) {
      const size = high * wide, start = from + 2 * state.a * size, scale = highest[state.a] / 255;
      for (let cell = 0; cell < size; cell++) {
        const at = (which) => Number((seen.heat[start + which * size + cell] * scale).toPrecision(4));
        found.push([name, image, Math.floor(cell / wide), cell % wide, at(0), at(1)]);
      }
    }
    return { columns: ["unit", "image", "row", "column", "dense", "dynamic"], rows: found };
  }

  byId("run").replaceChildren(...recordings.map((recording, number) =>
    make("option", { value: String(number) }, recording.name)));
  byId("run").addEventListener("change", (event) => {
    state.run = Number(event.target.value);
    open();
    keep();
  });
  byId("order").addEventListener("change", (event) => {
    state.order = event.target.value;
    fillPicks();
  });
  byId("sorted").addEventListener("change", (event) => {
    state.sorted = event.target.checked;
    paintRows();
  });
  for (const name of ["a", "b"]) {
    byId("next-" + name).addEventListener("click", () => {
      state.next = name;
      markPicks();
    });
  }
  byId("clear-b").addEventListener("click", () => {
    state.b = null;
    show();
    keep();
  });
  byId("picks").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) choose(Number(button.dataset.place), event.shiftKey ? "b" : state.next);
  });
  byId("picks").addEventListener("keydown", (event) => {
    const buttons = [...byId("picks").querySelectorAll("button")], at = buttons.indexOf(event.target);
    if (at < 0) return;
    if (event.key === "a" || event.key === "b") {
      choose(Number(event.target.dataset.place), event.key);
      return;
    }
    const across = buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across };
    const wanted = event.key === "Home" ? buttons[0] : event.key === "End" ? buttons.at(-1)
      : buttons[at + (steps[event.key] ?? NaN)];
    if (!wanted) return;
    event.preventDefault();
    buttons.forEach((button) => { button.tabIndex = -1; });
    wanted.tabIndex = 0;
    wanted.focus();
  });
  for (const kind of ["csv", "json"]) {
    byId("route-" + kind).addEventListener("click", () => ftwt.download("route", kind, data()));
    byId("maps-" + kind).addEventListener("click", () => ftwt.download("heatmaps", kind, heatmapData()));
  }
  window.addEventListener("hashchange", () => { if (recall()) open(); });
  new ResizeObserver(() => paintRows()).observe(byId("routes"));
  ftwt.onTheme.push(() => { legend(); paintRows(); });
  recall();
  open();
};
