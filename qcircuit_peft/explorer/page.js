// The page: what is chosen or edited, and what follows from it. Text from files is only ever text.
"use strict";
(() => {
  const T = JSON.parse(document.getElementById("data").textContent), C = core(T), $ = (id) => document.getElementById(id);
  const SVG = "http://www.w3.org/2000/svg", PARTS = ["first", "layer", "last"], SAMPLES = 100, LARGE = 400;
  let family, shipped, ticket = 0;

  function element(name, attributes = {}, ...inside) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) key.startsWith("on") ? made.addEventListener(key.slice(2), value) : made.setAttribute(key, value);
    made.append(...inside);
    return made;
  }
  function drawn(parent, name, attributes = {}, text = "") {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== "") made.textContent = text;
    parent.append(made);
    return made;
  }
  const sheet = (width, height, title, fit) => {
    const svg = document.createElementNS(SVG, "svg");
    for (const [key, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title })) svg.setAttribute(key, value);
    if (fit) svg.setAttribute("class", "fit");
    return svg;
  };
  const qubits = () => Number($("qubits").value), layers = () => Number($("layers").value);

  function drawing(c) {
    const at = C.places(c), last = Math.max(-1, ...at), wide = 58, high = 40, left = 34;
    const width = left + (last + 1) * wide + 16, svg = sheet(Math.max(width, 90), c.n * high + 8, "the circuit");
    const y = (w) => w * high + high / 2 + 4, x = (k) => left + k * wide + wide / 2;
    for (let w = 0; w < c.n; w++) {
      drawn(svg, "text", { x: 6, y: y(w) + 4 }, `${w}`);
      drawn(svg, "path", { class: "wire", d: `M22 ${y(w)}H${Math.max(width, 90) - 4}` });
    }
    c.ops.forEach(({ gate, wires, angle }, index) => {
      const here = x(at[index]), low = Math.min(...wires), top = Math.max(...wires);
      if (low < top) drawn(svg, "path", { class: "link", d: `M${here} ${y(low)}V${y(top)}` });
      wires.forEach((w, i) => {
        const mark = gate.marks[i];
        if (mark === "●") drawn(svg, "circle", { class: "dot", cx: here, cy: y(w), r: 4 });
        else if (mark === "⊕") {
          drawn(svg, "circle", { class: "hole", cx: here, cy: y(w), r: 8 });
          drawn(svg, "path", { class: "mark", d: `M${here - 8} ${y(w)}h16M${here} ${y(w) - 8}v16` });
        } else if (mark === "×") drawn(svg, "path", { class: "mark", d: `M${here - 5} ${y(w) - 5}l10 10m-10 0l10 -10` });
        else {
          drawn(svg, "rect", { class: angle < 0 ? "box" : "box turn", x: here - 25, y: y(w) - 15, width: 50, height: 30, rx: 3 });
          const port = gate.ports && gate.wires === 2 && !gate.marks ? ` ${i}` : "";
          drawn(svg, "text", { x: here, y: y(w) + (angle < 0 ? 4 : -1), "text-anchor": "middle" }, gate.box + port);
          if (angle >= 0) drawn(svg, "text", { class: "soft", x: here, y: y(w) + 11, "text-anchor": "middle" }, `θ${angle}`);
        }
      });
    });
    $("drawing").replaceChildren(svg);
  }

  function counts(c) {
    const found = C.counts(c), rows = [["angles", found.angles], ["independent angles", "..."], ["gates", found.gates], ["gates on two wires", found.two],
      ["depth", found.depth], ["matrix", `${1 << c.n} x ${1 << c.n}, ${c.real ? "real" : "complex"}`], ...Object.entries(found.byGate)];
    $("counts").replaceChildren(...rows.map(([name, value]) => element("tr", {}, element("td", {}, name), element("td", name.startsWith("indep") ? { id: "independent" } : {}, `${value}`))));
  }

  function entanglement(n, now) {
    const rows = C.entanglement(family, n, 8, n > 6 ? SAMPLES / 2 : SAMPLES), width = 340, height = 220, left = 42, low = 30;
    const svg = sheet(width, height, "mean Q against the number of layers", true);
    const x = (l) => left + (l * (width - left - 14)) / 8, y = (q) => 16 + (1 - q) * (height - low - 16);
    for (const q of [0, 0.25, 0.5, 0.75, 1]) {
      drawn(svg, "path", { class: "grid", d: `M${left} ${y(q)}H${width - 14}` });
      drawn(svg, "text", { x: left - 6, y: y(q) + 4, "text-anchor": "end" }, `${q}`);
    }
    for (const { layers: l } of rows) drawn(svg, "text", { x: x(l), y: height - 14, "text-anchor": "middle" }, `${l}`);
    drawn(svg, "text", { x: width - 14, y: height - 1, "text-anchor": "end", class: "soft" }, "layers L");
    drawn(svg, "text", { x: left + 4, y: 9, class: "soft" }, "mean Q");
    const real = C.circuit(family, n, 1).real, random = T.random[real ? "real" : "complex"][n - 1];
    drawn(svg, "path", { class: "random", d: `M${left} ${y(random)}H${width - 14}` });
    drawn(svg, "text", { class: "soft", x: width - 16, y: y(random) - 5, "text-anchor": "end" }, `random ${real ? "real" : "complex"} states ${random.toFixed(3)}`);
    drawn(svg, "path", { class: "curve", d: "M" + rows.map((r) => `${x(r.layers)} ${y(r.mean)}`).join("L") });
    for (const r of rows) drawn(svg, "circle", { class: "point", cx: x(r.layers), cy: y(r.mean), r: 3.5 });
    drawn(svg, "circle", { class: "now", cx: x(now), cy: y(rows[now].mean), r: 7 });
    $("entanglement").replaceChildren(svg);
    $("entanglement-note").textContent = `Meyer-Wallach Q over random angles, 0 (products) to 1. At L = ${now}: ${rows[now].mean.toFixed(3)} ± ${rows[now].error.toFixed(3)} (standard error).`;
  }

  function spectrum(c) {
    const next = C.random(7), angles = Float64Array.from({ length: c.angles }, () => 2 * Math.PI * next()), found = C.phases(c, angles);
    const size = 220, svg = sheet(size, size, "eigenvalues of U on the unit circle", true), r = 86, middle = size / 2;
    svg.style.maxWidth = "16rem";
    drawn(svg, "circle", { class: "wire", cx: middle, cy: middle, r });
    drawn(svg, "path", { class: "grid", d: `M${middle - r} ${middle}h${2 * r}M${middle} ${middle - r}v${2 * r}` });
    for (const [text, dx, dy] of [["1", r + 12, 4], ["i", 0, -r - 10], ["-1", -r - 14, 4], ["-i", 0, r + 18]]) drawn(svg, "text", { x: middle + dx, y: middle + dy, "text-anchor": "middle", class: "soft" }, text);
    for (const phase of found) drawn(svg, "circle", { class: "point", cx: (middle + r * Math.cos(phase)).toFixed(2), cy: (middle - r * Math.sin(phase)).toFixed(2), r: found.length > 64 ? 2 : 3.5 });
    $("spectrum").replaceChildren(svg);
    const turn = 2 * Math.PI, gaps = found.map((phase, i) => (i + 1 < found.length ? found[i + 1] : found[0] + turn) - phase), distinct = Math.max(1, gaps.filter((gap) => gap > 1e-9).length);
    $("spectrum-note").textContent = `Eigenvalues at one draw of the angles: ${found.length}, ${distinct} of them different, as a frame of all ${found.length} columns has them.`;
  }

  function steps() {
    const changed = (run) => () => { try { run(); edit(); } catch (error) { say(error); } };
    const words = (on) => (typeof on === "string" ? on : on.map((wires) => wires.join(" ")).join(", "));
    const read = (text) => { const on = text.trim(); return Object.hasOwn(T.wirings, on) || !/^[\d\s,]+$/.test(on) ? on : on.split(",").map((wires) => wires.trim().split(/\s+/).map(Number)); };
    const list = element("datalist", { id: "wirings" }, ...Object.keys(T.wirings).map((name) => element("option", { value: name })));
    const gates = element("datalist", { id: "gates" }, ...T.gates.map((gate) => element("option", { value: gate.name })));
    const lines = PARTS.flatMap((part) => [
      element("div", { class: "part" }, part),
      ...family[part].map((step, i) => {
        const gate = element("input", { list: "gates", "aria-label": `gates of ${part} ${i + 1}`, value: [step.gate].flat().join(" ") });
        const on = element("input", { list: "wirings", "aria-label": `wires of ${part} ${i + 1}`, value: words(step.on) });
        const take = changed(() => { const typed = gate.value.toUpperCase().trim().split(/[\s,]+/); put(part, i, { gate: typed.length === 1 ? typed[0] : typed, on: read(on.value) }); });
        gate.addEventListener("change", take);
        on.addEventListener("change", take);
        const button = (text, label, run, off) => element("button", { type: "button", "aria-label": `${label} ${part} ${i + 1}`, ...(off ? { disabled: "" } : {}), onclick: changed(run) }, text);
        return element("div", { class: "step" }, gate, " on ", on,
          button("↑", "move up", () => { const all = own()[part]; [all[i - 1], all[i]] = [all[i], all[i - 1]]; }, i === 0),
          button("✕", "remove", () => own()[part].splice(i, 1)));
      }),
      element("div", { class: "step" }, element("button", { type: "button", "aria-label": `add to ${part}`, onclick: changed(() => own()[part].push({ gate: "RY", on: "each" })) }, "+ step")),
    ]);
    $("steps").replaceChildren(list, gates, ...lines);
  }
  // The family to change: one's own, no longer that of the library.
  function own() {
    if (shipped) { family = { ...structuredClone(family), name: `my_${family.name}`, cite: "" }; shipped = false; $("family").value = ""; }
    return family;
  }
  function put(part, i, step) {
    C.checked({ name: "", first: [], layer: [], last: [], [part]: [step] });
    own()[part][i] = step;
  }
  function edit() { steps(); refresh(); }
  function say(error) { $("problem").textContent = error.message; }

  function refresh() {
    const n = qubits(), l = layers(), mine = ++ticket;
    $("qubits-value").textContent = `${n}`;
    $("layers-value").textContent = `${l}`;
    $("about").textContent = family.about + (family.cite ? ` (${family.cite})` : "");
    $("toml").textContent = C.toml(family);
    $("python").textContent = C.python(family, l, shipped);
    let c;
    try {
      c = C.circuit(family, n, l);
      $("problem").textContent = "";
    } catch (error) {
      say(error);
      for (const id of ["drawing", "counts", "entanglement", "spectrum"]) $(id).replaceChildren();
      for (const id of ["entanglement-note", "spectrum-note"]) $(id).textContent = "";
      return;
    }
    drawing(c);
    counts(c);
    const work = [
      () => entanglement(n, l),
      () => spectrum(c),
      () => ($("independent").textContent = c.angles > LARGE ? `not counted above ${LARGE}` : `${Math.max(C.independent(c, 1), C.independent(c, 2))}`),
      () => document.body.setAttribute("data-done", `${mine}`),
    ];
    const go = () => { // a piece at a time, so that the page answers
      if (mine !== ticket || !work.length) return;
      try { work.shift()(); } catch (error) { say(error); }
      setTimeout(go);
    };
    setTimeout(go, 30);
  }

  function choose(index) { family = structuredClone(T.families[index]); shipped = family.shipped; delete family.shipped; family = C.checked(family); edit(); }
  T.families.forEach((one, i) => $("family").append(element("option", { value: `${i}` }, one.name)));
  $("family").addEventListener("change", () => choose(Number($("family").value)));
  for (const id of ["qubits", "layers"]) $(id).addEventListener("input", refresh);
  for (const button of document.querySelectorAll("[data-copy]"))
    button.addEventListener("click", () => {
      const text = $(button.dataset.copy);
      const done = () => { button.textContent = "copied"; setTimeout(() => (button.textContent = "copy"), 1500); };
      const select = () => { getSelection().selectAllChildren(text); document.execCommand("copy"); done(); };
      navigator.clipboard ? navigator.clipboard.writeText(text.textContent).then(done, select) : select();
    });
  $("family").value = `${T.start}`;
  choose(T.start);
})();
