// What the explorer computes: circuits of steps on up to 8 qubits. Gates, wirings and references are tables that the
// library wrote (T); tests compare every function here with the library. Wire 0 is the most significant.
"use strict";

function core(T) {
  const GATES = new Map(T.gates.map((gate) => [gate.name, gate]));
  const MAX_OPS = 4000;

  function groupsOf(step, n) {
    if (typeof step.on === "string") return T.wirings[step.on][n - 1];
    for (const wires of step.on)
      for (const wire of wires)
        if (wire >= n) throw new Error(`wire ${wire} is not one of the ${n} wires`);
    return step.on;
  }

  // The steps of a family as they are, or an error in a sentence: they may come from anyone.
  function checked(family) {
    const found = { name: String(family.name).slice(0, 200), about: String(family.about ?? "").slice(0, 2000) };
    found.cite = String(family.cite ?? "").slice(0, 2000);
    for (const part of ["first", "layer", "last"]) {
      if (!Array.isArray(family[part])) throw new Error(`'${part}' is a list of steps`);
      found[part] = family[part].slice(0, 64).map((step) => {
        const gates = Array.isArray(step.gate) ? step.gate : [step.gate];
        if (!gates.length) throw new Error("a step has at least one gate");
        for (const gate of gates)
          if (!GATES.has(gate)) throw new Error(`unknown gate '${String(gate).slice(0, 40)}'; allowed are ${[...GATES.keys()].join(", ")}`);
        if (typeof step.on === "string") {
          if (!Object.hasOwn(T.wirings, step.on)) throw new Error(`unknown wiring '${step.on.slice(0, 40)}'`);
        } else {
          const fits = (w) => Array.isArray(w) && (w.length === 1 || w.length === 2) && w.every((x) => Number.isInteger(x) && x >= 0) && new Set(w).size === w.length;
          if (!Array.isArray(step.on) || !step.on.length || !step.on.every(fits))
            throw new Error("'on' is a wiring, or one or two different wires each, such as 0 3, 1 2");
        }
        return { gate: gates.length === 1 ? gates[0] : [...gates], on: step.on };
      });
    }
    return found;
  }

  // The ops in time order: a gate, its wires, and the position of its angle or -1.
  function circuit(family, n, layers) {
    const ops = [];
    let angles = 0;
    const run = (steps) => {
      for (const step of steps)
        for (const wires of groupsOf(step, n))
          for (const name of Array.isArray(step.gate) ? step.gate : [step.gate]) {
            const gate = GATES.get(name);
            if (gate.wires > wires.length) throw new Error(`${name} acts on ${gate.wires} wires, got ${wires.join(" ")}`);
            for (const on of gate.wires === wires.length ? [wires] : wires.map((w) => [w])) {
              ops.push({ gate, wires: on, angle: gate.angles ? angles++ : -1 });
              if (ops.length > MAX_OPS) throw new Error(`at most ${MAX_OPS} gates are computed here`);
            }
          }
    };
    run(family.first);
    const layer = [ops.length];
    for (let l = 0; l < layers; l++) { run(family.layer); layer.push(ops.length); }
    run(family.last);
    return { n, ops, angles, layer, real: ops.every((op) => op.gate.real) };
  }

  // The column in which each op is drawn: as early as its wires are free and nothing else is in its way.
  function places(c) {
    const free = new Array(c.n).fill(0), taken = new Set();
    return c.ops.map(({ wires }) => {
      const low = Math.min(...wires), high = Math.max(...wires);
      let at = Math.max(...wires.map((w) => free[w]));
      const blocked = () => { for (let w = low; w <= high; w++) if (taken.has(at * 64 + w)) return true; return false; };
      while (blocked()) at++;
      for (let w = low; w <= high; w++) taken.add(at * 64 + w);
      for (const w of wires) free[w] = at + 1;
      return at;
    });
  }

  function counts(c) {
    const front = new Array(c.n).fill(0), gates = {};
    let two = 0;
    for (const { gate, wires } of c.ops) {
      const step = 1 + Math.max(...wires.map((w) => front[w]));
      for (const w of wires) front[w] = step;
      gates[gate.name] = (gates[gate.name] ?? 0) + 1;
      two += wires.length === 2;
    }
    return { angles: c.angles, gates: c.ops.length, two, depth: Math.max(0, ...front), byGate: gates };
  }

  function entries(gate, t, derivative) {
    const f = gate.frequency, cos = Math.cos(f * t), sin = Math.sin(f * t);
    const [a, b, d] = derivative ? [0, -f * sin, f * cos] : [1, cos, sin];
    return gate.constant.map((part, i) => part.map((x, j) => a * x + b * gate.cosine[i][j] + d * gate.sine[i][j]));
  }

  // M on a state (re, im) of 2^n numbers, in place.
  function apply(state, n, wires, [mr, mi]) {
    const { re, im } = state, size = re.length, bits = wires.map((w) => 1 << (n - 1 - w));
    const mask = bits.reduce((x, y) => x | y, 0), d = 1 << wires.length;
    const at = Array.from({ length: d }, (_, k) => bits.reduce((x, bit, i) => (k >> (wires.length - 1 - i)) & 1 ? x | bit : x, 0));
    const xr = new Float64Array(d), xi = new Float64Array(d);
    for (let base = 0; base < size; base++) {
      if (base & mask) continue;
      for (let k = 0; k < d; k++) { xr[k] = re[base | at[k]]; xi[k] = im[base | at[k]]; }
      for (let j = 0; j < d; j++) {
        let sr = 0, si = 0;
        for (let k = 0; k < d; k++) {
          const a = mr[j * d + k], b = mi[j * d + k];
          if (a === 0 && b === 0) continue;
          sr += a * xr[k] - b * xi[k];
          si += a * xi[k] + b * xr[k];
        }
        re[base | at[j]] = sr;
        im[base | at[j]] = si;
      }
    }
  }

  const copy = (s) => ({ re: s.re.slice(), im: s.im.slice() });
  const basis = (n, k) => { const s = { re: new Float64Array(1 << n), im: new Float64Array(1 << n) }; s.re[k] = 1; return s; };
  const turned = (op, angles) => entries(op.gate, op.angle < 0 ? 0 : angles[op.angle], false);

  function state(c, angles, k = 0) {
    const s = basis(c.n, k);
    for (const op of c.ops) apply(s, c.n, op.wires, turned(op, angles));
    return s;
  }

  // Q = 2 (1 - mean over wires of Tr rho^2).
  function meyerWallach(s, n) {
    let total = 0;
    for (let w = 0; w < n; w++) {
      const bit = 1 << (n - 1 - w);
      let zero = 0, one = 0, xr = 0, xi = 0;
      for (let k = 0; k < s.re.length; k++) {
        const square = s.re[k] ** 2 + s.im[k] ** 2;
        if (k & bit) one += square;
        else {
          zero += square;
          xr += s.re[k] * s.re[k | bit] + s.im[k] * s.im[k | bit];
          xi += s.re[k] * s.im[k | bit] - s.im[k] * s.re[k | bit];
        }
      }
      total += zero ** 2 + one ** 2 + 2 * (xr ** 2 + xi ** 2);
    }
    return 2 * (1 - total / n);
  }

  // Numbers in [0, 1), the same for the same seed (mulberry32).
  function random(seed) {
    let a = seed >>> 0;
    return () => {
      a = (a + 0x6d2b79f5) >>> 0;
      let t = Math.imul(a ^ (a >>> 15), a | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
  }
  const drawn = (c, next) => Float64Array.from({ length: c.angles }, () => 2 * Math.PI * next());

  // Mean Q of a family at L = 0, ..., most, and its standard error, over random angles.
  function entanglement(family, n, most, samples, seed = 1) {
    const next = random(seed), found = [];
    for (let layers = 0; layers <= most; layers++) {
      const c = circuit(family, n, layers);
      let sum = 0, squares = 0;
      for (let i = 0; i < samples; i++) {
        const q = meyerWallach(state(c, drawn(c, next)), n);
        sum += q; squares += q * q;
      }
      const mean = sum / samples;
      found.push({ layers, mean, error: Math.sqrt(Math.max(0, squares / samples - mean * mean) / Math.max(1, samples - 1)) });
    }
    return found;
  }

  // The rank of the Jacobian of U, seen through U on a few random vectors; on all columns where these are no more.
  function independent(c, seed = 1) {
    if (!c.angles) return 0;
    const next = random(seed), size = 1 << c.n, some = Math.max(8, Math.ceil((2 * c.angles) / size) + 4);
    const angles = drawn(c, next), rows = [];
    for (let m = 0; m < Math.min(size, some); m++) {
      let s = basis(c.n, m);
      if (some < size) for (let k = 0; k < size; k++) { s.re[k] = next() - 0.5; s.im[k] = c.real ? 0 : next() - 0.5; }
      const slopes = [];
      for (const op of c.ops) {
        const here = turned(op, angles);
        for (const slope of slopes) apply(slope, c.n, op.wires, here);
        if (op.angle >= 0) {
          const slope = copy(s);
          apply(slope, c.n, op.wires, entries(op.gate, angles[op.angle], true));
          slopes.push(slope);
        }
        apply(s, c.n, op.wires, here);
      }
      slopes.forEach((slope, j) => (rows[j] ??= []).push(slope.re, slope.im));
    }
    return rank(rows.map((parts) => { const x = new Float64Array(parts.length * size); parts.forEach((p, i) => x.set(p, i * size)); return x; }));
  }

  // Vectors that are not sums of others: Gram and Schmidt, the longest first, twice.
  function rank(vectors) {
    const norm = (x) => { let s = 0; for (const v of x) s += v * v; return s; };
    const left = vectors.map((x) => ({ x, size: norm(x) })), largest = Math.max(...left.map((v) => v.size));
    let found = 0;
    while (left.length) {
      let best = 0;
      for (let i = 1; i < left.length; i++) if (left[i].size > left[best].size) best = i;
      const [{ x, size }] = left.splice(best, 1);
      if (!(size > 1e-16 * largest)) break;
      found++;
      const scale = 1 / Math.sqrt(size);
      for (let k = 0; k < x.length; k++) x[k] *= scale;
      for (const other of left) {
        for (let turn = 0; turn < 2; turn++) {
          let dot = 0;
          for (let k = 0; k < x.length; k++) dot += x[k] * other.x[k];
          for (let k = 0; k < x.length; k++) other.x[k] -= dot * x[k];
        }
        other.size = norm(other.x);
      }
    }
    return found;
  }

  function matrix(c, angles) {
    const size = 1 << c.n, re = [], im = [];
    for (let k = 0; k < size; k++) { const s = state(c, angles, k); re.push(s.re); im.push(s.im); }
    return { re, im }; // columns
  }

  // The angles of the eigenvalues of U, in (-pi, pi], ascending: Hessenberg form, then QR steps with Wilkinson's shifts.
  function phases(c, angles) {
    const { re, im } = matrix(c, angles), n = re.length; // of the transpose, which has the same eigenvalues
    const hr = re.map((x) => Float64Array.from(x)), hi = im.map((x) => Float64Array.from(x));
    for (let k = 0; k < n - 2; k++) {
      let norm = 0;
      for (let i = k + 1; i < n; i++) norm += hr[i][k] ** 2 + hi[i][k] ** 2;
      norm = Math.sqrt(norm);
      const size = Math.hypot(hr[k + 1][k], hi[k + 1][k]);
      if (norm - size < 1e-30 * norm || norm === 0) continue;
      const vr = new Float64Array(n), vi = new Float64Array(n);
      for (let i = k + 1; i < n; i++) { vr[i] = hr[i][k]; vi[i] = hi[i][k]; }
      vr[k + 1] += size ? (norm * hr[k + 1][k]) / size : norm;
      vi[k + 1] += size ? (norm * hi[k + 1][k]) / size : 0;
      let square = 0;
      for (let i = k + 1; i < n; i++) square += vr[i] ** 2 + vi[i] ** 2;
      for (let j = k; j < n; j++) { // H <- (1 - 2 v v+ / v+v) H
        let sr = 0, si = 0;
        for (let i = k + 1; i < n; i++) { sr += vr[i] * hr[i][j] + vi[i] * hi[i][j]; si += vr[i] * hi[i][j] - vi[i] * hr[i][j]; }
        sr *= 2 / square; si *= 2 / square;
        for (let i = k + 1; i < n; i++) { hr[i][j] -= vr[i] * sr - vi[i] * si; hi[i][j] -= vr[i] * si + vi[i] * sr; }
      }
      for (let i = 0; i < n; i++) { // H <- H (1 - 2 v v+ / v+v)
        let sr = 0, si = 0;
        const row = hr[i], rowi = hi[i];
        for (let j = k + 1; j < n; j++) { sr += row[j] * vr[j] - rowi[j] * vi[j]; si += row[j] * vi[j] + rowi[j] * vr[j]; }
        sr *= 2 / square; si *= 2 / square;
        for (let j = k + 1; j < n; j++) { row[j] -= sr * vr[j] + si * vi[j]; rowi[j] -= si * vr[j] - sr * vi[j]; }
      }
    }
    const found = [];
    let high = n - 1, tries = 0;
    while (high >= 0) {
      let low = high;
      while (low > 0 && Math.hypot(hr[low][low - 1], hi[low][low - 1]) > 1e-14) low--;
      if (low === high) { found.push(Math.atan2(hi[high][high], hr[high][high])); high--; tries = 0; continue; }
      if (++tries > 300) throw new Error("the eigenvalues were not found");
      let [mr, mi] = tries % 11 === 10 ? [Math.cos(tries), Math.sin(tries)] : wilkinson(hr, hi, high);
      for (let i = low; i <= high; i++) { hr[i][i] -= mr; hi[i][i] -= mi; }
      const turns = [];
      for (let k = low; k < high; k++) {
        const ar = hr[k][k], ai = hi[k][k], br = hr[k + 1][k], bi = hi[k + 1][k], r = Math.sqrt(ar * ar + ai * ai + br * br + bi * bi);
        const t = r ? [ar / r, ai / r, br / r, bi / r] : [1, 0, 0, 0];
        turns.push(t);
        const [cr, ci, sr, si] = t, p = hr[k], pi = hi[k], q = hr[k + 1], qi = hi[k + 1];
        for (let j = k; j <= high; j++) {
          const xr = p[j], xi = pi[j], yr = q[j], yi = qi[j];
          p[j] = cr * xr + ci * xi + sr * yr + si * yi; pi[j] = cr * xi - ci * xr + sr * yi - si * yr;
          q[j] = cr * yr - ci * yi - (sr * xr - si * xi); qi[j] = cr * yi + ci * yr - (sr * xi + si * xr);
        }
      }
      turns.forEach(([cr, ci, sr, si], index) => {
        const k = low + index;
        for (let i = low; i <= Math.min(k + 1, high); i++) {
          const p = hr[i], pi = hi[i], xr = p[k], xi = pi[k], yr = p[k + 1], yi = pi[k + 1];
          p[k] = cr * xr - ci * xi + sr * yr - si * yi; pi[k] = cr * xi + ci * xr + sr * yi + si * yr;
          p[k + 1] = cr * yr + ci * yi - (sr * xr + si * xi); pi[k + 1] = cr * yi - ci * yr - (sr * xi - si * xr);
        }
      });
      for (let i = low; i <= high; i++) { hr[i][i] += mr; hi[i][i] += mi; }
    }
    return found.sort((a, b) => a - b);
  }

  // The eigenvalue of the last two rows and columns that is nearer to the last entry.
  function wilkinson(hr, hi, k) {
    const ar = hr[k - 1][k - 1], ai = hi[k - 1][k - 1], dr = hr[k][k], di = hi[k][k];
    const bcr = hr[k - 1][k] * hr[k][k - 1] - hi[k - 1][k] * hi[k][k - 1], bci = hr[k - 1][k] * hi[k][k - 1] + hi[k - 1][k] * hr[k][k - 1];
    const er = (ar - dr) / 2, ei = (ai - di) / 2, xr = er * er - ei * ei + bcr, xi = 2 * er * ei + bci;
    const size = Math.hypot(xr, xi), rr = Math.sqrt((size + xr) / 2), ri = Math.sign(xi || 1) * Math.sqrt(Math.max(0, (size - xr) / 2));
    const sign = er * rr + ei * ri > 0 ? -1 : 1; // the smaller of e + root and e - root
    return [dr + er + sign * rr, di + ei + sign * ri];
  }

  // A text in TOML, as the library writes it: JSON, with what cannot be printed by its number.
  const quoted = (text) => JSON.stringify(text).replace(/[\u007f-\u00a0\u00ad\u2028\u2029\ud800-\udfff\ufeff]/g, (x) => "\\U" + x.charCodeAt(0).toString(16).padStart(8, "0"));
  const listed = (value) => (Array.isArray(value) ? `[${value.map(listed).join(", ")}]` : typeof value === "number" ? `${value}` : quoted(value));

  function toml(family) {
    const lines = ["name", "about", "cite"].map((key) => `${key.padEnd(5)} = ${listed(family[key])}`);
    for (const part of ["first", "layer", "last"])
      for (const step of family[part]) lines.push("", `[[${part}]]`, `gate = ${listed(step.gate)}`, `on   = ${listed(step.on)}`);
    return lines.join("\n") + "\n";
  }

  function python(family, layers, shipped) {
    const source = shipped ? family.name : `${family.name.replace(/\W+/g, "_") || "mine"}.toml`;
    return ["from qcircuit_peft import QCircuitConfig, load", `ansatz = load("${source}")`,
      `config = QCircuitConfig(ansatz=ansatz, layers=${layers}, r=16, target_modules=["query", "value"])`].join("\n") + "\n";
  }

  return { checked, circuit, places, counts, state, meyerWallach, entanglement, independent, phases, random, toml, python };
}
if (typeof module !== "undefined") module.exports = core;
